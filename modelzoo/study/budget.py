"""How many FLOPs a run of so many steps will take, to the last one, and how many steps a budget buys. No torch."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.models.shapes import parameters
from modelzoo.planning import plan
from modelzoo.sparsity.schedules import held, update_steps
from modelzoo.sparsity.select import group_counts


def spent(config: Config, steps: int) -> tuple[int, int]:
    """Training FLOPs of `steps` steps: as run, and dense-equivalent. What `sparsity.ledger` will have counted then."""
    init = config.trainer.init
    m = init.model
    context = manifest.context(config)
    tokens = config.trainer.fit.train_dataloader.batch_size * context
    linear = {n: s.numel for n, s in parameters(m).items() if s.kind == "linear"}
    fixed = 12 * m.num_hidden_layers * context * m.inner_dim + 6 * m.hidden_size * m.vocab_size
    dense = sparse = steps * (fixed + 6 * sum(linear.values()))
    for group, sizes in plan.groups(init):
        mine = [n for n in sizes if n in linear]
        full = sum(linear[n] for n in mine)

        @cache
        def off(sparsity: float, group=group, sizes=sizes, mine=mine, full=full) -> int:
            counts = group_counts(group, sizes, sparsity)
            return full - sum(counts[n] for n in mine)

        updates = [] if group.algorithm == "static" else list(update_steps(group.update, steps))
        for a, b in pairwise([0, *(s for s in updates if s < steps), steps]):  # steps a + 1 to b train alike
            sparse -= 6 * (b - a) * off(held(group, a))
        if group.algorithm == "rigl":
            sparse += sum(2 * off(held(group, s - 1)) for s in updates)
    return tokens * sparse, tokens * dense


def steps_for(flops: float, make: Callable[[int], Config]) -> int:
    """The number of steps whose FLOPs come nearest to `flops`.

    Args:
        make: the config of a run of so many steps (schedules may stretch with its length).
    """
    steps, seen = 100, set()
    while steps not in seen:  # a longer run's mean step hardly differs, so this settles at once
        seen.add(steps)
        steps = max(1, round(flops * steps / spent(make(steps), steps)[0]))
    near = [s for s in (steps - 1, steps, steps + 1) if s > 0]
    return min(near, key=lambda s: abs(spent(make(s), s)[0] - flops))
