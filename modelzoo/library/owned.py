"""What `sparsify` refuses of a module and its optimizer before it changes either."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.sparsity.modules import Weight
from modelzoo.sparsity.schedules import held
from modelzoo.sparsity.select import check_sides, group_counts, select_parameters

MARK = "_trained_sparsely"  # an attribute of the weights that are


def check_types(module: object, optimizer: object) -> None:
    """Refuse what is no module or no optimizer that can be followed.

    Raises:
        UserError: names what was given.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"module: takes a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise UserError(f"optimizer: takes a torch.optim.Optimizer itself, got {type(optimizer).__name__}")


def check_owned(
    table: Mapping[str, Weight],
    named: Mapping[str, nn.Parameter],
    groups: Sequence[SparsityGroup],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Refuse weights that are no floats, are trained sparsely already, or train and are not the optimizer's.

    Raises:
        UserError: names the weight.
    """
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in (n for names in select_parameters(table, groups) for n in names):
        p = named[name]
        if hasattr(p, MARK):
            raise UserError(f"{name}: is trained sparsely already; call detach() of that training first")
        if not p.is_floating_point():
            raise UserError(f"{name}: holds {p.dtype}, not floats; leave it out by param_filter")
        if p.requires_grad and id(p) not in owned:
            raise UserError(
                f"{name}: the optimizer does not hold it; make it of module.parameters(), or leave this weight out "
                "by param_filter"
            )


def check_counts(table: Mapping[str, Weight], groups: Sequence[SparsityGroup]) -> None:
    """Refuse patterns that do not divide a weight, and weights of which none would live.

    Raises:
        UserError: names the weight.
    """
    for group, names in zip(groups, select_parameters(table, groups), strict=True):
        sizes = {name: table[name].size for name in names}
        check_sides(group, sizes)
        for name, live in group_counts(group, sizes, held(group, 0)).items():
            if not live and group.init_method != "from_zeros" and not group.compat:
                raise UserError(f"sparsity: no live weight is left in {name} {sizes[name]}")


def check_alone(groups: Sequence[SparsityGroup]) -> None:
    """Refuse masks by the gradients of one process among several: each would have masks of its own.

    Raises:
        UserError: there are several processes, and a group changes masks so.
    """
    among = torch.distributed
    size = among.get_world_size() if among.is_available() and among.is_initialized() else 1
    if any(g.algorithm == "sr_ste" for g in groups):
        raise UserError(
            "sparsity.algorithm: sr_ste is for this package's trainer, which steps the weights that are off"
        )
    name = next((g.algorithm for g in groups if g.needs_dense_gradient or g.algorithm == "mest"), None)
    if size > 1 and name is not None:
        raise UserError(
            f"sparsity.algorithm: {name} grows or drops by the gradients of one process here, and there are {size}; "
            "take set, gmp or static, or this package's trainer"
        )


def check_state(name: str, weight: nn.Parameter, state: Mapping[str, object]) -> None:
    """Refuse optimizer state of a weight that is quantised: its zero is not the number's.

    Raises:
        UserError: names it.
    """
    for key, x in state.items():
        if isinstance(x, Tensor) and x.dtype in (torch.uint8, torch.int8) and x.shape == weight.shape:
            raise UserError(f"{name}: the optimizer's state {key!r} is quantised, and has no zero to mask with")
