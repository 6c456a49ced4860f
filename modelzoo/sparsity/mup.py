"""Sparse maximal update parametrisation (SuPar, arXiv 2405.15743): one learning rate for every density.

With density rho and m = rho / rho_base, a hidden weight begins with variance sigma^2 / m and Adam's learning rate is
eta / m (table 1 there; muP's width factors multiply on top). So the scale of activations and of their updates does not
depend on how many weights are off, and a rate that was tuned at rho_base serves every sparsity. The paper's argument
is about random masks that do not change.
"""

from collections.abc import Mapping, Sequence

import torch

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.schedules import held
from modelzoo.sparsity.select import ShapeLike, base_ratios, select_parameters


def density_ratios(shapes: Mapping[str, ShapeLike], groups: Sequence[SparsityGroup]) -> dict[str, float]:
    """rho / rho_base of each weight whose group sets `mup_base_density`."""
    ratios = {}
    for group, names in zip(groups, select_parameters(shapes, groups), strict=True):
        if group.mup_base_density is not None:
            sizes = {n: shapes[n].size for n in names}
            ratios |= base_ratios(group, sizes, held(group, 0))
    return ratios


@torch.no_grad()
def correct_rates(sparsity: Sparsity, ratios: Mapping[str, float]) -> None:
    """Multiply freshly drawn weights by m ** -0.5."""
    for p in sparsity.parameters:
        if p.name in ratios:
            p.weight.mul_(ratios[p.name] ** -0.5)
