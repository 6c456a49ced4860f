"""The exact training FLOPs of a number of steps, and the steps that a budget of FLOPs pays for. No torch."""

from collections.abc import Callable

from modelzoo.config.required import require_fit
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.models.shapes import frozen, list_with_adapters
from modelzoo.planning.stored import group_sizes
from modelzoo.sparsity import flops


def count_flops(config: Config, steps: int) -> tuple[int, int]:
    """Training FLOPs of `steps` steps: as run, and dense-equivalent. What `sparsity.ledger` will have counted then."""
    init, context = config.trainer.init, manifest.find_context(config)
    shapes, groups = list_with_adapters(init), group_sizes(init)
    sparse, dense = flops.count_run(init.model, shapes, context, groups, steps, frozen(init))
    tokens = require_fit(config).train_dataloader.batch_size * context
    return tokens * sparse, tokens * dense


def find_steps(amount: float, make: Callable[[int], Config]) -> int:
    """The number of steps whose FLOPs come nearest to `amount`.

    Args:
        make: the config of a run of so many steps (schedules may stretch with its length).
    """
    steps, seen = 100, set()
    while steps not in seen:  # a longer run's mean step hardly differs, so this settles at once
        seen.add(steps)
        steps = max(1, round(amount * steps / count_flops(make(steps), steps)[0]))
    near = [s for s in (steps - 1, steps, steps + 1) if s > 0]
    return min(near, key=lambda s: abs(count_flops(make(s), s)[0] - amount))
