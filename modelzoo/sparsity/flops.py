"""Training FLOPs of a token: the one count that plan, ledger, study budget and model card share. Exact, no torch.

A multiply-add is two FLOPs; training is three passes (forward, gradient of inputs, gradient of weights), so a weight
costs 6 FLOPs a token, and 4 where it does not train. For a GPT with ffn = 4d this is MediSwift's count (arXiv
2403.00952): 6 (1-s) 12 L d^2 + 12 L T d + 6 d V. Attention scores count in full (no credit for causal masks), as there.
That the first layer's inputs may need no gradient is left out. Counted, not measured.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

from modelzoo.config.sections import sparsity_schedules as c
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.sparsity.schedules import held, update_steps
from modelzoo.sparsity.select import ShapeLike, group_counts

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples' fractions fill [0, 1) evenly
Sizes = Mapping[str, tuple[int, ...]]  # of the weights that a group acts on, by name


class Cost(NamedTuple):
    """Training FLOPs per token."""

    linear: int  # live weights of the transformer's matrices, and LoRA's
    attention: int  # scores and their product with the values
    head: int  # logits over the vocabulary

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.linear + self.attention + self.head


def count_per_token(
    model: GPTConfig,
    shapes: Mapping[str, ShapeLike],
    context: int,
    live: Mapping[str, int] = MappingProxyType({}),
    frozen: Collection[str] = (),
    dense_gradient: Collection[str] = (),
) -> Cost:
    """FLOPs of one token in one training step, forward and backward.

    Embeddings are looked up and not multiplied, so they cost nothing, but for the head, which a tied embedding is too.

    Args:
        shapes: every parameter (`models.shapes.list_with_adapters`), the word embedding before other embeddings.
        context: tokens of a sequence.
        live: live weights by name; others are whole.
        frozen: names of weights that do not train: no gradient of theirs is made.
        dense_gradient: names of weights whose dead places need a gradient too in this step (RigL's updates):
            2 fS + fD, as arXiv 1911.11134, appendix H, counts.
    """
    kinds = {shape.kind: name for name, shape in reversed(list(shapes.items()))}  # the first of each kind
    passes = 4 if kinds.get("head", kinds["embedding"]) in frozen else 6
    attention = 12 * model.num_hidden_layers * context * model.inner_dim
    linear = _count_linear(shapes, live, frozen, dense_gradient)
    return Cost(linear, attention, passes * model.hidden_size * model.vocab_size)


def _count_linear(
    shapes: Mapping[str, ShapeLike], live: Mapping[str, int], frozen: Collection[str], dense_gradient: Collection[str]
) -> int:
    total = 0
    for name, shape in shapes.items():
        if shape.kind in ("linear", "adapter"):
            full = math.prod(shape.size)
            on = live.get(name, full)
            total += (4 if name in frozen else 6) * on
            if name in dense_gradient and name not in frozen:
                total += 2 * (full - on)
    return total


def count_run(
    model: GPTConfig,
    shapes: Mapping[str, ShapeLike],
    context: int,
    groups: Sequence[tuple[SparsityGroup, Sizes]],
    steps: int,
    frozen: Collection[str] = (),
    samples: int | None = None,
) -> tuple[int, int]:
    """FLOPs of one token of every step in a run of `steps` steps: as scheduled, and with every weight on.

    Times the tokens of a batch, this is what the ledger of the run will have counted.

    Args:
        samples: count the masks of about so many levels of sparsity, where a schedule takes more; None counts all.
    """
    dense = steps * count_per_token(model, shapes, context, frozen=frozen).total
    sparse = dense
    for group, sizes in groups:  # each saves of its own weights, and asks for gradients of its own
        own = {n: shapes[n] for n in sizes}
        whole = _count_linear(own, {}, frozen, ())
        moves = group.algorithm != "static" and any(n not in frozen for n in sizes)
        for level, n, updates in _count_levels(group, steps, samples) if moves else [(held(group, 0), steps, 0)]:
            live = group_counts(group, sizes, level)
            quiet = _count_linear(own, live, frozen, ())
            sparse += n * (quiet - whole)
            if group.needs_dense_gradient:
                sparse += updates * (_count_linear(own, live, frozen, sizes) - quiet)
    return sparse, dense


def _count_levels(group: SparsityGroup, steps: int, samples: int | None) -> Iterator[tuple[float, int, int]]:
    """Each sparsity of a group's masks in a run, how many steps train with it, and how many of these are updates.

    An update step trains with the masks that it then changes. `samples`: as in `count_run`.
    """
    updates = update_steps(group.update, steps)
    if not updates:
        yield held(group, 0), steps, 0
        return
    yield held(group, 0), updates[0], 1
    level = lambda i: held(group, updates[i])
    if isinstance(group.sparsity, c.Cycling):
        cycle, last = len(group.sparsity.values), len(updates) - 1
        for i in range(min(cycle, len(updates))):
            mine, later = updates[i::cycle], updates[i + 1 :: cycle]
            ends = sum(later) + (steps if last % cycle == i else 0)
            yield level(i), ends - sum(mine), len(later)
        return
    settled = _find_settled(group.sparsity, updates, level)
    stride = 1 if samples is None else max(1, -(-settled // samples))
    cuts = sorted({*range(0, settled, stride), settled, len(updates)})
    for k, (i, j) in enumerate(pairwise(cuts)):
        # the middle one, but of a cosine another each time: its middles may all lie at one place of its swing
        share = k * GOLDEN % 1 if isinstance(group.sparsity, c.Cosine) else 0.5
        near = i if i == settled else i + int(share * (j - i))
        end = updates[j] if j < len(updates) else steps
        yield level(near), end - updates[i], min(j, len(updates) - 1) - i


def _find_settled(schedule: c.Schedule, updates: Sequence[int], level: Callable[[int], float]) -> int:
    """The first of `updates` from which on a schedule stays at its last value to the digit; their number where none."""
    match schedule:
        case c.Constant():
            return 0
        case c.Cubic() | c.Sigmoid():
            return bisect_left(updates, schedule.end)
        case c.Linear():
            last = level(len(updates) - 1)
            return bisect_left(range(len(updates)), True, key=lambda i: level(i) == last)
    return len(updates)
