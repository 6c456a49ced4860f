"""`compat: cstorch`: masks by cerebras.pytorch's rules, where ours differ on purpose (docs/csx.md has the table).

Schedules and k = (1 - sparsity) * n are computed in float32 and cut off; ties fall as torch.topk lets them; dead
weights score 0 instead of not at all; a mask is all ones until the first update if step 0 is not an update step; a
group whose sparsity rises faster than it drops weights keeps more than its target.
"""

from functools import singledispatch

import torch
from torch import Tensor

from modelzoo.config.sections import sparsity_schedules as c
from modelzoo.sparsity import algorithms as ours
from modelzoo.sparsity import masks, schedules


@singledispatch
def value32(schedule, step: Tensor, update: c.Update | None = None) -> Tensor:
    """The schedule's value as a float32 scalar.

    Args:
        step: int64 scalar, optimizer steps taken.
        update: matters to cycling schedules only.
    """
    raise TypeError(f"no value for {type(schedule).__name__}")


@value32.register
def _(s: c.Constant, step: Tensor, update=None) -> Tensor:
    return torch.tensor(float(s.value))


@value32.register
def _(s: c.Linear, step: Tensor, update=None) -> Tensor:
    y = torch.tensor(float(s.init)) + step * torch.tensor(float(s.slope))
    if s.final is None:
        return y
    return torch.clamp(y, max=s.final) if s.slope >= 0 else torch.clamp(y, min=s.final)


@value32.register
def _(s: c.Exp, step: Tensor, update=None) -> Tensor:
    final = torch.tensor(float(s.final))
    return final - (final - torch.tensor(float(s.init))) * torch.exp(step * torch.tensor(float(s.gamma)))


@value32.register
def _(s: c.Power, step: Tensor, update=None) -> Tensor:
    return torch.tensor(float(s.init)) * torch.pow(torch.tensor(float(s.beta)), step)


@value32.register
def _(s: c.Cosine, step: Tensor, update=None) -> Tensor:
    middle = (s.minimum + s.init) / 2
    return torch.tensor(s.init - middle) * torch.cos(step * torch.tensor(torch.pi / s.half_period)) + middle


@value32.register
def _(s: c.Cycling, step: Tensor, update=None) -> Tensor:
    return torch.tensor(float(schedules.value(s, int(step), update)))


@value32.register
def _(s: c.Cubic, step: Tensor, update=None) -> Tensor:
    left = 1.0 - torch.clamp((step.float() - s.begin) / (s.end - s.begin), 0.0, 1.0)
    return s.final + (s.init - s.final) * left * left * left


class Static(ours.Static):
    """The rules that all algorithms share. The exact k that callers compute is passed over."""

    def k(self, row: int, step: int) -> int:
        """Live weights of a row of `row` weights that compete among themselves."""
        level = value32(self.group.sparsity, torch.tensor(step), self.group.update).clamp(0.0, 1.0)
        return int(((1 - level) * torch.tensor(row, dtype=torch.float32)).int())

    def rows(self, scores: Tensor) -> Tensor:
        """One row, or one per balanced group."""
        return masks.as_rows(scores, self.group.balance_in_groups, self.group.balance_out_groups)

    def choose(self, scores: Tensor, k: int) -> Tensor:
        """The k best of each row as torch.topk finds them."""
        rows = self.rows(scores)
        chosen = torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, torch.topk(rows, k, dim=-1).indices, True)
        return masks.from_rows(chosen, scores.shape, self.group.balance_in_groups)

    def init_mask(self, name, weight, k):
        """All ones where masks change and step 0 is no update step; else the first mask, with k in float32."""
        if self.changes and not schedules.is_update(self.group.update, 0):
            return torch.ones_like(weight, dtype=torch.bool)
        return super().init_mask(name, weight, self.k(self.rows(weight).shape[-1], 0))


class GMP(Static):
    """cerebras.pytorch's GMP: the k largest weights, dead ones included as zeros."""

    changes = True

    def update_mask(self, name, weight, mask, grad, step, k):
        return self.choose(weight.abs(), self.k(weight.numel(), step))


class SET(Static, ours.SET):
    """cerebras.pytorch's SET: its drops and counts in float32."""

    changes = True

    def update_mask(self, name, weight, mask, grad, step, k):
        drop = self.drop32(step)
        rows = self.rows(mask)
        keep = int(((1 - drop) * (mask.sum().float() / rows.shape[0])).int())
        kept = self.choose(weight.abs(), keep)
        score = torch.where(kept, masks.DEAD, self.grow_score(name, weight, kept, grad, step))
        return kept | self.choose(score, max(self.k(rows.shape[-1], step) - keep, 0))

    def drop32(self, step: int) -> Tensor:
        """The share to drop. A cycling one begins with the first real update: step 0 draws masks and drops nothing."""
        fraction, update = self.group.drop_fraction or c.Constant(value=0.3), self.group.update
        if isinstance(fraction, c.Cycling):
            done = schedules.updates_before(update, step) - schedules.is_update(update, 0)
            return torch.tensor(float(fraction.values[done % len(fraction.values)]))
        return value32(fraction, torch.tensor(step), update)


class RigL(SET, ours.RigL):
    """cerebras.pytorch's drops and counts, RigL's growth."""


ALGORITHMS = {"static": Static, "gmp": GMP, "set": SET, "rigl": RigL}
