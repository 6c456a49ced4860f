"""The FLOPs ledger: training cost per token, dense-equivalent and sparse. Exact counts, no torch.

A multiply-add is two FLOPs; training is three passes (forward, gradient of inputs, gradient of weights), so a weight
costs 6 FLOPs a token. For a GPT with ffn = 4d this is MediSwift's count (arXiv 2403.00952): 6 (1-s) 12 L d^2 + 12 L T d
+ 6 d V. Attention scores count in full (no credit for causal masks), as there.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Cost(NamedTuple):
    """Training FLOPs per token."""

    linear: float  # live weights of the transformer's matrices
    attention: float  # scores and their product with the values
    head: float  # logits over the vocabulary

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.head


def per_token(
    live: Mapping[str, int],
    layers: int,
    inner_dim: int,
    context: int,
    hidden: int,
    vocab: int,
    frozen: bool = False,
    adapters: int = 0,
) -> Cost:
    """FLOPs of one token, forward and backward.

    Args:
        live: live (multiplied) weights of each linear matrix, by name.
        layers, inner_dim, context: attention's layers, width over all heads, and sequence length.
        hidden, vocab: the head's two sides.
        frozen: no weight of these trains, so their gradients are never made: two passes instead of three. (That the
            first layer's inputs may need no gradient either is left out.)
        adapters: weights of LoRA's matrices, which train.
    """
    each = 4.0 if frozen else 6.0
    return Cost(each * sum(live.values()) + 6.0 * adapters, 12.0 * layers * context * inner_dim, each * hidden * vocab)


def rigl_average(sparse: float, dense: float, updates: int, steps: int) -> float:
    """Mean training FLOPs of `steps` RigL steps, `updates` of which need the dense weight gradient too.

    A plain step costs 3 fS and an update step 2 fS + fD, with forward costs fS = sparse / 3 and fD = dense / 3. One
    update in dT + 1 steps gives the paper's (3 fS dT + 2 fS + fD) / (dT + 1) (arXiv 1911.11134, appendix H).
    """
    return sparse + (dense - sparse) / 3 * updates / steps
