"""The FLOPs that a run has taken, step by step, beside those of the same steps with every weight on.

Each pass over a weight costs 2 FLOPs a token: forward, gradient of the inputs, gradient of the weight (only where it
trains). A mask saves all three, but for the steps that ask for the dense gradient of a weight (RigL's updates), where
the third pass is dense: 2 fS + fD, as arXiv 1911.11134, appendix H, counts. Attention and head as in `flops`.
Counted, not measured: what the device really multiplies is another matter.
"""

from dataclasses import dataclass

from torch import nn

from modelzoo.config.model import GPTConfig
from modelzoo.sparsity.attach import Sparsity


@dataclass
class Ledger:
    """Training FLOPs so far: `sparse` as run, `dense` had every weight been on. Exact integers."""

    sparse: int = 0
    dense: int = 0

    def add(
        self, config: GPTConfig, model: nn.Module, sparsity: Sparsity, tokens: int, context: int, step: int
    ) -> None:
        """Count one step, with the masks as they are (so before they are updated).

        Args:
            tokens: of the batch, padding included. context: tokens of a sequence.
            step: optimizer steps taken, this one included.
        """
        masked = {p.name: p for p in sparsity.parameters}
        asked = {
            p.name
            for group in sparsity.groups
            if group.algorithm.needs_gradient and group.algorithm.is_update(step)
            for p in group.parameters
        }
        sparse = dense = 12 * config.num_hidden_layers * context * config.inner_dim
        head = True  # whether the head's weight trains
        for name, weight in model.named_parameters():
            if name.endswith(("word_embeddings.weight", "lm_head.weight")):
                head = weight.requires_grad  # an untied head comes after the embedding
            elif weight.dim() > 1 and "embedding" not in name:
                full = masked[name].shape.numel() if name in masked else weight.numel()
                live = masked[name].live if name in masked else full
                passes = 6 if weight.requires_grad else 4
                dense += passes * full
                sparse += passes * live + (2 * (full - live) if name in asked and weight.requires_grad else 0)
        logits = (6 if head else 4) * config.hidden_size * config.vocab_size
        self.sparse += tokens * (sparse + logits)
        self.dense += tokens * (dense + logits)
