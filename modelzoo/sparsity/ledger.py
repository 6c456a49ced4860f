"""The FLOPs that a run has taken, step by step, and those of the same steps with every weight on.

Each step is counted by `flops.count_per_token` with the masks as they are. Counted, not measured: what the device
really multiplies is another matter.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from modelzoo.config.sections.model import GPTConfig
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.flops import count_per_token
from modelzoo.sparsity.select import ShapeLike


@dataclass
class Ledger:
    """Training FLOPs so far: `sparse` as run, `dense` had every weight been on. Exact integers."""

    sparse: int = 0
    dense: int = 0

    def add(
        self,
        model: GPTConfig,
        shapes: Mapping[str, ShapeLike],
        frozen: Collection[str],
        sparsity: Sparsity,
        tokens: int,
        context: int,
        step: int,
    ) -> None:
        """Count one step, with the masks as they are (so before they are updated).

        Args:
            shapes: every parameter of the run, adapters included. frozen: names of those that do not train.
            tokens: of the batch, padding included. context: tokens of a sequence.
            step: optimizer steps taken, this one included.
        """
        live = {p.name: p.live for p in sparsity.parameters}
        asked = {
            p.name
            for group in sparsity.groups
            if group.algorithm.needs_gradient and group.is_update(step)
            for p in group.parameters
        }
        self.sparse += tokens * count_per_token(model, shapes, context, live, frozen, asked).total
        self.dense += tokens * count_per_token(model, shapes, context, frozen=frozen).total
