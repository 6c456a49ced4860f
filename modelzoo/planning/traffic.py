"""What devices that train one run send each other in a step. No torch."""

import math

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Init
from modelzoo.models.shapes import Shape, frozen, list_parameters, list_with_adapters
from modelzoo.planning.stored import count_live, count_stored, group_sizes
from modelzoo.sparsity import schedules
from modelzoo.sparsity.select import group_counts

VALUE = 4  # bytes of a gradient on the wire: float32


def count_sent(init: Init, step: int, steps: int = 0) -> int:
    """Values of gradients that a replica gives for the sum of optimizer step `step`, of which 1 is the first.

    Of a sparse weight these are the live ones, but for RigL's update steps, which need all. What is left open by
    `storage: auto` counts as whole under a mask.

    Args:
        steps: of the run: live weights are counted when most are; 0: at `step`.
    """
    off, shapes = frozen(init), list_with_adapters(init)
    values = {n: s.numel for n, s in shapes.items() if n not in off}
    for group, sizes in group_sizes(init):
        dense = needs_dense_gradients(group, step)
        level = schedules.lowest(group, steps) if steps else schedules.held(group, step - 1)
        for name, live in group_counts(group, sizes, level).items():
            if name in values:
                whole = math.prod(sizes[name])
                probe = whole if is_packed(group, shapes[name]) else 0  # apart from the gradient of the live blocks
                values[name] = (probe + live if probe else whole) if dense else live
    return sum(values.values())


def count_masked(init: Init, steps: int = 0) -> int:
    """Live weights that are stored whole and train: their places are kept to pick gradients. `steps`: as above."""
    off, shapes, found = frozen(init), list_parameters(init.model), 0
    for group, sizes in group_sizes(init):
        counts = count_live(group, sizes, steps)
        found += sum(k for n, k in counts.items() if n not in off and not is_packed(group, shapes[n]))
    return found


def find_dense_step(init: Init, steps: int | None) -> int | None:
    """The first of `steps` steps that sends dense gradients, if there is one."""
    if init.base_frozen:
        return None
    found = [schedules.next_update(g.update, 0) for g in init.sparsity if g.needs_dense_gradient]
    return min((s for s in found if s is not None and (steps is None or s <= steps)), default=None)


def name_asking(init: Init) -> str:
    """Whose update steps want dense gradients: "RigL's"."""
    names = {"rigl": "RigL's", "granet": "GraNet's", "sr_ste": "SR-STE's"}
    return " and ".join(dict.fromkeys(names[g.algorithm] for g in init.sparsity if g.needs_dense_gradient))


def needs_dense_gradients(group: SparsityGroup, step: int) -> bool:
    """Whether masks of `group` change after `step` by the gradients of dead weights too."""
    return group.needs_dense_gradient and schedules.is_update(group.update, step)


def is_packed(group: SparsityGroup, shape: Shape) -> bool:
    """Whether live blocks of a weight are stored alone: linears', where the config asks for it."""
    return group.may_pack and group.storage == "packed" and shape.kind in ("linear", "head")


def count_replica_bytes(values: int, devices: int, exact: bool) -> int:
    """Bytes that each replica sends in a step whose gradients have `values`.

    fast: a ring's all-reduce. exact: once all of them, and the loss, to one partner after another.
    """
    if exact:
        return VALUE * (values + 1) * (devices.bit_length() - 1)
    return 2 * VALUE * values * (devices - 1) // devices


def count_gathered(init: Init, item: int, steps: int = 0) -> tuple[int, int]:
    """Bytes of the weights that shards gather: of layers' linears, and of all else.

    Linears travel in the type in which they are multiplied, live blocks and the rest in float32.

    Args:
        item: bytes of a value of the arithmetic. steps: as in `count_stored`.
    """
    shapes = list_with_adapters(init)
    inside = sum(s.numel for n, s in shapes.items() if ".self_attn." in n or ".ffn." in n)
    gone, _ = count_stored(init, ("packed",), steps)
    return (VALUE if gone else item) * (inside - gone), VALUE * (sum(s.numel for s in shapes.values()) - inside)


def count_shard_bytes(layers: int, rest: int, trained: int, devices: int, micro_batches: int) -> int:
    """Bytes that each shard sends in a step: with every micro-batch weights are gathered and gradients summed.

    Args:
        layers: bytes of layers' linears, which are gathered for forward and again for backward. rest: of all else,
            which stays until backward is over.
        trained: values of gradients, summed into their shards in float32.
        micro_batches: of each device.
    """
    return micro_batches * (2 * layers + rest + VALUE * trained) * (devices - 1) // devices
