"""Which parameters are sparse and how many weights of each stay: exact integers, from shapes alone. No torch."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Protocol

from modelzoo.config.errors import UserError
from modelzoo.config.sparsity import SparsityGroup


class ShapeLike(Protocol):
    """What is known of a parameter before it exists: its `size` and its `kind` (linear, embedding, norm, ...)."""

    size: tuple[int, ...]
    kind: str


def select(shapes: Mapping[str, ShapeLike], groups: Sequence[SparsityGroup]) -> list[list[str]]:
    """Parameter names per group; a parameter goes to the first group whose filter matches.

    Without `param_filter`, a group takes the linear weights: embeddings, norms, biases and the head stay dense because
    of what they are, whatever they are called.

    Raises:
        UserError: a group is left with nothing to act on.
    """
    taken: set[str] = set()
    chosen = []
    for i, group in enumerate(groups):
        matched = [n for n, s in shapes.items() if len(s.size) > 1 and _matches(n, s, group)]
        names = [n for n in matched if n not in taken]
        if not names:
            filters = ", ".join(group.param_filter or ("the default: linear weights",))
            why = "all it matches belongs to earlier groups" if matched else "matches no weight"
            example = next((n for n, s in shapes.items() if s.kind == "linear"), "nothing here")
            raise UserError(f"trainer.init.sparsity.{i}.param_filter ({filters}): {why}; names look like {example}")
        taken.update(names)
        chosen.append(names)
    return chosen


def _matches(name: str, shape: ShapeLike, group: SparsityGroup) -> bool:
    if group.param_filter is None:
        return shape.kind == "linear"
    return any(fnmatchcase(name, pattern) for pattern in group.param_filter)


def group_counts(group: SparsityGroup, sizes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, int]:
    """Live weights of each parameter of `group` at one overall `sparsity`.

    Balanced groups hold equal numbers, so what does not divide among them stays off.
    """
    balance = group.balance_in_groups or group.balance_out_groups or 1
    return {n: k // balance * balance for n, k in live_counts(sizes, sparsity, group.distribution).items()}


def live_count(numel: int, sparsity: float) -> int:
    """floor((1 - sparsity) * numel), exactly: 0.9 means nine tenths, not its nearest double."""
    return int((1 - Fraction(repr(float(sparsity)))) * numel)


def live_counts(sizes: Mapping[str, tuple[int, ...]], sparsity: float, distribution: str) -> dict[str, int]:
    """Live weights of each parameter at one overall `sparsity`.

    uniform: each parameter at that sparsity. erdos_renyi and erk: density proportional to (out + in) / (out * in), a
    layer that would pass 1 is kept dense and the rest rescaled (RigL, arXiv 1911.11134, appendix A); for matrices the
    two are the same. Their total is exactly floor((1 - sparsity) * all).
    """
    numel = {name: math.prod(size) for name, size in sizes.items()}
    if distribution == "uniform":
        return {name: live_count(n, sparsity) for name, n in numel.items()}
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
