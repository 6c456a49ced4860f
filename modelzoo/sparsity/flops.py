"""Training FLOPs of a token: the one count that plan, ledger, study budget and model card share. Exact, no torch.

A multiply-add is two FLOPs; training is three passes (forward, gradient of inputs, gradient of weights), so a weight
costs 6 FLOPs a token, and 4 where it does not train. For a GPT with ffn = 4d this is MediSwift's count (arXiv
2403.00952): 6 (1-s) 12 L d^2 + 12 L T d + 6 d V. Attention scores count in full (no credit for causal masks), as there.
That the first layer's inputs may need no gradient is left out. Counted, not measured.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.sparsity.schedules import held, update_steps
from modelzoo.sparsity.select import ShapeLike, group_counts

Sizes = Mapping[str, tuple[int, ...]]  # of the weights that a group acts on, by name


class Cost(NamedTuple):
    """Training FLOPs per token."""

    linear: int  # live weights of the transformer's matrices, and LoRA's
    attention: int  # scores and their product with the values
    head: int  # logits over the vocabulary

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.linear + self.attention + self.head


def count_per_token(
    model: GPTConfig,
    shapes: Mapping[str, ShapeLike],
    context: int,
    live: Mapping[str, int] = MappingProxyType({}),
    frozen: Collection[str] = (),
    dense_gradient: Collection[str] = (),
) -> Cost:
    """FLOPs of one token in one training step, forward and backward.

    Embeddings are looked up and not multiplied, so they cost nothing, but for the head, which a tied embedding is too.

    Args:
        shapes: every parameter (`models.shapes.list_with_adapters`), the word embedding before other embeddings.
        context: tokens of a sequence.
        live: live weights by name; others are whole.
        frozen: names of weights that do not train: no gradient of theirs is made.
        dense_gradient: names of weights whose dead places need a gradient too in this step (RigL's updates):
            2 fS + fD, as arXiv 1911.11134, appendix H, counts.
    """
    linear = 0
    for name, shape in shapes.items():
        if shape.kind in ("linear", "adapter"):
            full = math.prod(shape.size)
            on = live.get(name, full)
            linear += (4 if name in frozen else 6) * on
            if name in dense_gradient and name not in frozen:
                linear += 2 * (full - on)
    kinds = {shape.kind: name for name, shape in reversed(list(shapes.items()))}  # the first of each kind
    passes = 4 if kinds.get("head", kinds["embedding"]) in frozen else 6
    attention = 12 * model.num_hidden_layers * context * model.inner_dim
    return Cost(linear, attention, passes * model.hidden_size * model.vocab_size)


def count_run(
    model: GPTConfig,
    shapes: Mapping[str, ShapeLike],
    context: int,
    groups: Sequence[tuple[SparsityGroup, Sizes]],
    steps: int,
    frozen: Collection[str] = (),
    samples: int | None = None,
) -> tuple[int, int]:
    """FLOPs of one token of every step in a run of `steps` steps: as scheduled, and with every weight on.

    Times the tokens of a batch, this is what the ledger of the run will have counted.

    Args:
        samples: count the masks of about so many levels of sparsity, where a schedule takes more; None counts all.
    """
    dense = steps * count_per_token(model, shapes, context, frozen=frozen).total
    alike: dict[tuple[bool, ...], list[tuple[tuple[float, ...], int]]] = {}
    for (levels, asks), n in _steps_alike(groups, steps, frozen).items():
        alike.setdefault(asks, []).append((levels, n))
    sparse = 0
    for asks, found in alike.items():
        names = {n for (_, sizes), asked in zip(groups, asks, strict=True) if asked for n in sizes}
        stride = 1 if samples is None else -(-len(found) // samples)
        for i in range(0, len(found), stride):
            near = found[i : i + stride]
            levels, _ = near[len(near) // 2]
            live = {
                n: k for (g, sizes), s in zip(groups, levels, strict=True) for n, k in group_counts(g, sizes, s).items()
            }
            cost = count_per_token(model, shapes, context, live, frozen, names).total
            sparse += cost * sum(n for _, n in near)
    return sparse, dense


def _steps_alike(
    groups: Sequence[tuple[SparsityGroup, Sizes]], steps: int, frozen: Collection[str]
) -> Counter[tuple[tuple[float, ...], tuple[bool, ...]]]:
    """How many steps train alike: by the sparsity of each group's masks, and whether it asks for the dense gradient."""
    moves = [g.algorithm != "static" and any(n not in frozen for n in sizes) for g, sizes in groups]
    updates = [set(update_steps(g.update, steps)) if m else set() for (g, _), m in zip(groups, moves, strict=True)]
    quiet = (False,) * len(groups)
    found: Counter = Counter()
    last = 0  # the update step before; masks of steps last + 1 to the next one are as it left them
    for step in (*sorted(set().union(*updates)), None):
        levels = tuple(held(g, last if m else 0) for (g, _), m in zip(groups, moves, strict=True))
        between = (steps if step is None else step - 1) - last
        if between:
            found[levels, quiet] += between
        if step is not None:
            asks = (g.needs_dense_gradient and step in mine for (g, _), mine in zip(groups, updates, strict=True))
            found[levels, tuple(asks)] += 1
            last = step
    return found
