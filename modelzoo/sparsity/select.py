"""Which parameters are sparse and how many weights of each stay: exact integers, from shapes alone. No torch."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.values.patterns import check_match, matches


class ShapeLike(Protocol):
    """What is known of a parameter before it exists: its `size` and its `kind` (linear, embedding, norm, ...)."""

    @property
    def size(self) -> tuple[int, ...]: ...

    @property
    def kind(self) -> str: ...


def select_parameters(shapes: Mapping[str, ShapeLike], groups: Sequence[SparsityGroup]) -> list[list[str]]:
    """Parameter names per group; a parameter goes to the first group whose filter matches.

    Without `param_filter`, a group takes the linear weights: embeddings, norms, biases and the head stay dense because
    of what they are, whatever they are called.

    Raises:
        UserError: a pattern that matches no weight, or a group that is left with nothing to act on.
    """
    taken: set[str] = set()
    chosen = []
    weights = [n for n, s in shapes.items() if len(s.size) > 1]
    for i, group in enumerate(groups):
        key = f"trainer.init.sparsity.{i}.param_filter"
        check_match(key, group.param_filter or (), weights, "weight")
        names = [n for n in weights if n not in taken and _matches(n, shapes[n], group)]
        if group.param_filter is None and not any(shapes[n].kind == "linear" for n in weights):
            raise UserError(f"{key}: there are no linear weights to take by default; name others")
        if not names:
            filters = ", ".join(group.param_filter or ("the default: linear weights",))
            raise UserError(f"{key} ({filters}): all it matches belongs to earlier groups; remove the group or reorder")
        taken.update(names)
        chosen.append(names)
    return chosen


def _matches(name: str, shape: ShapeLike, group: SparsityGroup) -> bool:
    if group.param_filter is None:
        return shape.kind == "linear"
    return any(matches(name, pattern) for pattern in group.param_filter)


def block_of(group: SparsityGroup, size: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of the blocks that live or die together in a weight of `size` [out, in]."""
    return (size[0] // group.shared_inputs, 1) if group.shared_inputs else group.block


def check_sides(group: SparsityGroup, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a pattern, or balanced groups, that do not divide a weight they act on.

    Blocks at an edge are never smaller than the others: counts would no longer be whole numbers of equal blocks.

    Raises:
        UserError: names the weight, and what would divide it.
    """
    rows, columns = group.block
    wanted = (
        ("balance_out_groups", group.balance_out_groups, 0),
        ("balance_in_groups", group.balance_in_groups, 1),
        ("shared_inputs", group.shared_inputs, 0),
        ("nm", group.nm and group.nm[1], 1),
        ("block", rows if rows > 1 else None, 0),
        ("block", columns if columns > 1 else None, 1),
    )
    for key, divisor, side in wanted:
        if divisor is None:
            continue
        for name, size in sizes.items():
            if len(size) != 2 or size[side] % divisor:
                near = sorted(_divisors(size[side]), key=lambda d: (abs(d - divisor), d))[:3] if len(size) == 2 else []
                fitting = f" ({', '.join(map(str, sorted(near)))})" if near else ""
                raise UserError(
                    f"trainer.init.sparsity.{key}: {divisor} does not divide {name} {size}; use a divisor of its "
                    f"{'outputs' if side == 0 else 'inputs'}{fitting}, or a param_filter that leaves this weight out"
                )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def group_counts(group: SparsityGroup, sizes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, int]:
    """Live weights of each parameter of `group` at one overall `sparsity`: whole blocks.

    Balanced groups, and the groups of shared inputs, hold equal numbers; what does not divide among them stays off.
    """
    if group.nm:
        n, m = group.nm
        return {name: math.prod(size) // m * n for name, size in sizes.items()}
    area = {name: math.prod(block_of(group, size)) for name, size in sizes.items()}
    balance = group.balance_in_groups or group.balance_out_groups or group.shared_inputs or 1
    counts = live_counts(sizes, sparsity, group.distribution, area)
    return {name: k // balance * balance * area[name] for name, k in counts.items()}


def base_ratios(group: SparsityGroup, sizes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """Each parameter's density at `sparsity`, in units of the group's `mup_base_density`."""
    counts, base = group_counts(group, sizes, sparsity), group.mup_base_density
    assert base is not None, "no base to relate to"
    return {n: counts[n] / math.prod(size) / base for n, size in sizes.items()}


def live_count(numel: int, sparsity: float) -> int:
    """floor((1 - sparsity) * numel), exactly: 0.9 means nine tenths, not its nearest double."""
    return int((1 - Fraction(repr(float(sparsity)))) * numel)


def live_counts(
    sizes: Mapping[str, tuple[int, ...]],
    sparsity: float,
    distribution: str,
    area: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Live weights of each parameter at one overall `sparsity`; live blocks where `area` gives their weights.

    uniform: each parameter at that sparsity. erdos_renyi and erk: density proportional to (out + in) / (out * in), a
    layer that would pass 1 is kept dense and the rest rescaled (RigL, arXiv 1911.11134, appendix A); for matrices the
    two are the same. Their total is exactly floor((1 - sparsity) * all); there, blocks are of one size.
    """
    numel = {name: math.prod(size) // (area[name] if area else 1) for name, size in sizes.items()}
    if distribution == "uniform":
        by_size = {n: live_count(n, sparsity) for n in set(numel.values())}
        return {name: by_size[n] for name, n in numel.items()}
    total = live_count(sum(numel.values()), sparsity)
    dense: set[str] = set()
    while True:
        rest = {n: Fraction(sum(sizes[n])) for n in sizes if n not in dense}
        budget = total - sum(numel[n] for n in dense)
        scale = Fraction(budget, 1) / sum(rest.values()) if rest else Fraction(0)
        full = {n for n, weight in rest.items() if weight * scale > numel[n]}
        if not full:
            break
        dense |= full
    exact = {n: Fraction(numel[n]) if n in dense else rest[n] * scale for n in sizes}
    counts = {n: int(x) for n, x in exact.items()}
    # Largest remainders take what truncation left, so that the total is the exact integer.
    for n in sorted(sizes, key=lambda n: (counts[n] - exact[n], n))[: total - sum(counts.values())]:
        counts[n] += 1
    return counts
