"""Sparse training of any torch module with any torch optimizer, by the trainer's own masks and algorithms.

sparsity = sparsify(module, optimizer, {"algorithm": "rigl", "sparsity": 0.8, "update": {"freq": 100}})
for batch in batches:
    optimizer.zero_grad()
    compute_loss(module, batch).backward()
    optimizer.step()
    sparsity.step()
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import validate
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.sections.base import Section
from modelzoo.config.sections.sparsity import SparsityGroup, SparsityGroups
from modelzoo.library.sparse_training import SparseTraining, naming_keys
from modelzoo.sparsity import schedules

Group = float | Mapping[str, Any] | SparsityGroup
Config = Group | Sequence[Group]


class _Whole(Section):
    sparsity: SparsityGroups


def sparsify(module: nn.Module, optimizer: torch.optim.Optimizer, config: Config, seed: int = 1) -> SparseTraining:
    """Let `optimizer` train `module` sparsely. First masks are drawn at once; what they mask is zero from here on.

    Args:
        module: with float weights, on its device. One that torch.compile wrapped is sparsified inside.
        optimizer: holds the module's parameters. Any: its state of a weight's shape is masked as the weight is.
        config: a group or a list of groups, as `trainer.init.sparsity` of a run has them, or the share of weights off.
            Without `param_filter` the matrices of linear modules are taken: no embeddings, norms, biases, tied or
            output heads, nor weights that do not train. `storage: packed` stores blocks of a Linear alone.
        seed: of random masks and growth, for groups without a seed of their own.

    Raises:
        UserError: the config is none, a filter matches nothing, or the optimizer lacks a weight.
    """
    return configure(config, seed).attach(module, optimizer)


def configure(config: Config, seed: int = 1) -> SparseTraining:
    """The same in cerebras.pytorch's spelling: `model.apply(sparsity)`, then `sparsity.apply(optimizer)`.

    Masks follow the optimizer by themselves then; there is no `step` to call.

    Raises:
        UserError: the config is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed: takes an integer from 0, got {seed!r}")
    return SparseTraining(_read_groups(config), seed)


def _read_groups(config: Config) -> tuple[SparsityGroup, ...]:
    """The groups of a config, checked."""
    if not isinstance(config, int | float | Mapping | Sequence | SparsityGroup) or isinstance(config, str | bytes):
        raise UserError(f"sparsity: takes a share of weights off, a mapping or a list of them, got {config!r:.80}")
    value = dict(config) if isinstance(config, Mapping) else config
    value = [dict(g) if isinstance(g, Mapping) else g for g in value] if isinstance(value, Sequence) else value
    with naming_keys():
        groups = validate(Document({"sparsity": value}), _Whole).sparsity
        for group in groups:
            schedules.check_schedule(group, 0)
    if not groups:
        raise UserError('sparsity: names no group; for example {"algorithm": "static", "sparsity": 0.8}')
    if any(g.mup_base_density is not None for g in groups):
        raise UserError(
            "sparsity.mup_base_density: scales learning rates, which are the optimizer's own here; remove it"
        )
    # packing changes a module's parameters, so here it is done where it is asked for alone
    automatic = lambda g: g.storage == "auto" and g.nm is None
    return tuple(g.model_copy(update={"storage": "masked"}) if automatic(g) else g for g in groups)
