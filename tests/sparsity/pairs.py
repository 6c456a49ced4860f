"""Two runs of one config whose products round differently, step by step from the same values.

Left to themselves such runs part without a fault: scores that tie but for rounding move another weight, and from then
on the runs are of other models. Here the second run is held to the first before masks move, within what one step's
rounding may do, and then takes the first one's values over: the masks come from the same scores and must be the same,
on any processor. What no checkpoint holds (layouts, kept bits, permutations) stays the second run's own all along.
"""

import torch
from torch import Tensor

from modelzoo.train_state import Step, TrainState
from modelzoo.training.checkpoints.snapshot import list_tensors
from tests.support import train_step

FLOAT32 = 64 * 2.0**-24  # sums of at most 64 products; each rounds by half a unit
BFLOAT16 = 8 * 2.0**-8  # factors and results are rounded, sums are not: eight products of two layers, back and forth


def values(run: TrainState) -> dict[str, Tensor]:
    """Weights, masks, moments and kept dense gradients, whole, copied to the host."""
    files = list_tensors(run)
    dense = {f"{p.name}/dense": p.dense_grad for p in run.sparsity.parameters if p.dense_grad is not None}
    found = {**files["model"], **files["optimizer"], **dense}
    return {n: x.detach().to("cpu", copy=True) for n, x in found.items()}


def _take(run: TrainState, found: dict[str, Tensor]) -> None:
    for name, p in run.model.named_parameters():
        p.copy_(run.sparsity.stored(p, found[name]))
        for key, x in run.optimizer.state[p].items():
            if isinstance(x, Tensor):
                x.copy_(run.sparsity.stored(p, found[f"{name}/{key}"]))
    for p in run.sparsity.parameters:
        if p.dense_grad is not None:
            p.dense_grad.copy_(found[f"{p.name}/dense"])


def _hold(ours: dict[str, Tensor], theirs: dict[str, Tensor], apart: float, update: float) -> None:
    """`apart` of the model's largest gradient or moment (a key's bias has rounding alone); weights within `update`."""
    assert ours.keys() == theirs.keys()
    largest: dict[str, float] = {}
    for name, x in theirs.items():
        kind = name.partition("/")[2]
        largest[kind] = max(largest.get(kind, 0.0), float(x.abs().max()) if x.is_floating_point() else 0.0)
    for name, x in theirs.items():
        kind = name.partition("/")[2]
        near = 0.0 if x.dtype == torch.bool or kind in ("step", "born") else apart * largest[kind] if kind else update
        if not _is_near(ours[name], x, near):
            torch.testing.assert_close(ours[name], x, rtol=0.0, atol=near, msg=lambda m, n=name: f"{n}: {m}")


def _is_near(x: Tensor, y: Tensor, near: float) -> bool:
    """Whether `assert_close` would pass, for a tenth of its time; False also where it alone can tell."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return bool((x - y).abs_().le(near).all()) if x.is_floating_point() else torch.equal(x, y)


def pair(first: TrainState, second: TrainState, apart: float, update: float, take_step=train_step):
    """A function that takes one step with both runs and returns both results; values and masks are then equal.

    Args:
        apart: share of the largest gradient (and of each moment) that rounding may make; the losses and the gradients'
            norms are held to it too.
        update: how far rounding may part two updates of a weight: Adam's divides the gradient by its size plus eps, so
            2 lr * apart * gradient / eps at most.
        take_step: takes a run, a batch and a number of micro-batches; default: on the CPU.
    """
    seen: dict[str, Tensor] = {}
    plain, other = first.sparsity.update, second.sparsity.update

    @torch.no_grad()
    def look(step, moments):
        seen.clear()
        seen.update(values(first))
        return plain(step, moments)

    @torch.no_grad()
    def hold(step, moments):
        _hold(values(second), seen, apart, update)
        _take(second, seen)
        return other(step, moments)

    first.sparsity.update, second.sparsity.update = look, hold

    def step(batch, parts: int = 1) -> tuple[Step, Step]:
        a, b = (take_step(run, batch, parts) for run in (first, second))
        assert abs(b.loss - a.loss) <= apart * abs(a.loss) and abs(b.grad_norm - a.grad_norm) <= apart * a.grad_norm
        assert a.churn == b.churn
        if a.churn:
            for (name, x), y in zip(values(first).items(), values(second).values(), strict=True):
                assert torch.equal(x, y), name  # masks of the same scores, and what moved with them
        return a, b

    return step
