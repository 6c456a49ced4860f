"""The one count of FLOPs: against the paper's closed form, multiplication by multiplication, and RigL's average."""

from math import prod
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.sections import sparsity_schedules as c
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.models.shapes import list_parameters
from modelzoo.sparsity import flops, schedules
from modelzoo.sparsity.schedules import held, is_update
from modelzoo.sparsity.select import group_counts
from tests.sparsity.test_schedules import LEVELS, LONG, UPDATES


def gpt(layers: int, heads: int, width: int, vocab: int, **fields) -> GPTConfig:
    sizes = {"hidden_size": width, "num_heads": heads, "num_hidden_layers": layers, "vocab_size": vocab}
    return GPTConfig(**{"filter_size": 4 * width, **sizes, **fields})


def linear(model: GPTConfig) -> dict[str, tuple[int, ...]]:
    return {n: s.size for n, s in list_parameters(model).items() if s.kind == "linear"}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4096), st.integers(1, 60_000), st.integers(0, 4))
def test_the_closed_formula(layers, heads, context, vocab, quarters):
    width = heads * 4
    model = gpt(layers, heads, width, vocab)
    live = {n: prod(size) * (4 - quarters) // 4 for n, size in linear(model).items()}
    cost = flops.count_per_token(model, list_parameters(model), context, live)
    sparsity = quarters / 4
    assert cost.total == 6 * (1 - sparsity) * 12 * layers * width**2 + 12 * layers * context * width + 6 * width * vocab
    assert cost.total == cost.linear + cost.attention + cost.head


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4096), st.integers(1, 999))
def test_the_closed_formula_of_shared_keys_and_gates(layers, groups, share, context, filter_size):
    """Queries and output d x d, keys and values d x (d / share), three feed-forward matrices; every head has scores."""
    heads = groups * share
    width, shared = heads * 4, {"attention_module": "multiquery_attention"}
    grouped = {**shared, "extra_attention_params": {"num_kv_groups": groups}}
    model = gpt(layers, heads, width, 1000, filter_size=filter_size, nonlinearity="swiglu", **grouped)
    matrices = 2 * width**2 + 2 * width * width // share + 3 * width * filter_size
    cost = flops.count_per_token(model, list_parameters(model), context)
    assert cost == (6 * layers * matrices, 12 * layers * context * width, 6 * width * 1000)


# arXiv 2403.00952's models, their shapes inferred from the published sizes: layers, heads, width, and the ratios of
# training FLOPs, dense over sparse, at 50 % and 75 %
MEDISWIFT = {
    "Med": (24, 16, 1024, "1.498", "1.995"),
    "Large": (18, 12, 1536, "1.572", "2.202"),
    "XL": (24, 16, 2048, "1.665", "2.494"),
}


@pytest.mark.parametrize("layers,heads,width,half,quarter", MEDISWIFT.values(), ids=MEDISWIFT)
def test_mediswifts_ratios(layers, heads, width, half, quarter):
    model = gpt(layers, heads, width, 50257)
    dense = flops.count_per_token(model, list_parameters(model), 2048).total
    for share, ratio in ((2, half), (4, quarter)):
        live = {n: prod(size) // share for n, size in linear(model).items()}
        assert f"{dense / flops.count_per_token(model, list_parameters(model), 2048, live).total:.3f}" == ratio


class Matrix(NamedTuple):
    size: tuple[int, ...]
    kind: str


def test_one_layer_counted_multiplication_by_multiplication():
    # forward of one token, 2 FLOPs a multiply-add: each matrix, T scores and T values over the width, one logit a word
    width, context, vocab, ffn = 3, 5, 7, 11
    matrices = {n: (width, width) for n in "qkvo"} | {"in": (ffn, width), "out": (width, ffn)}
    table = {n: Matrix(size, "linear") for n, size in matrices.items()}
    table = {"words": Matrix((vocab, width), "embedding"), **table, "norm": Matrix((width,), "norm")}
    model = gpt(1, 1, width, vocab, filter_size=ffn)
    forward = 2 * (sum(prod(size) for size in matrices.values()) + 2 * context * width + width * vocab)
    assert flops.count_per_token(model, table, context).total == 3 * forward
    # frozen weights have no gradient of their own; attention has no weights, so it keeps its passes
    attention = 2 * 2 * context * width
    assert flops.count_per_token(model, table, context, frozen=table).total == 2 * forward + attention
    # LoRA's two matrices take all three passes beside the frozen weight
    low = {"A": Matrix((2, width), "adapter"), "B": Matrix((width, 2), "adapter")}
    adapted = flops.count_per_token(model, table | low, context, frozen=table).total
    assert adapted == 2 * forward + attention + 3 * 2 * (2 * width + width * 2)
    # an untied head trains or does not for itself
    untied = table | {"head": Matrix((vocab, width), "head")}
    assert flops.count_per_token(model, untied, context, frozen=["words"]).total == 3 * forward
    assert flops.count_per_token(model, untied, context, frozen=["head"]).total == 3 * forward - 2 * width * vocab


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 6))
def test_rigls_average_is_the_papers(tenths, dt, rounds):
    """(3 fS dT + 2 fS + fD) / (dT + 1), where one step in dT + 1 asks for the dense gradient (arXiv 1911.11134)."""
    model, context = gpt(1, 2, 20, 7), 5
    sizes = linear(model)
    rigl = SparsityGroup.model_validate({"algorithm": "rigl", "sparsity": tenths / 10, "update": {"freq": dt + 1}})
    steps = rounds * (dt + 1)
    sparse, dense = flops.count_run(model, list_parameters(model), context, [(rigl, sizes)], steps)
    fixed = flops.count_per_token(model, list_parameters(model), context, dict.fromkeys(sizes, 0)).total
    f_d = (dense - steps * fixed) // steps // 3
    f_s = f_d * (10 - tenths) // 10
    assert sparse - steps * fixed == rounds * (3 * f_s * dt + 2 * f_s + f_d)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True), st.sampled_from(["gmp", "set", "rigl"]),
    st.integers(1, 45),
)  # fmt: skip
def test_a_run_costs_what_its_steps_cost_one_by_one(updates, algorithm, steps):
    model, context = gpt(1, 2, 20, 7), 5
    sizes, shapes = linear(model), list_parameters(model)
    cycle = [0.1, 0.5, 0.7]
    group = SparsityGroup.model_validate({"algorithm": algorithm, "sparsity": cycle, "update": {"steps": updates}})
    level, seen, expected = cycle[0], 0, 0
    for step in range(1, steps + 1):
        live = {n: round(prod(size) * (1 - level)) for n, size in sizes.items()}
        asked = sizes if algorithm == "rigl" and step in updates else ()
        expected += flops.count_per_token(model, shapes, context, live, (), asked).total
        if step in updates:
            level, seen = cycle[seen % 3], seen + 1
    assert flops.count_run(model, shapes, context, [(group, sizes)], steps)[0] == expected


def test_masks_of_frozen_weights_cost_what_they_cost_at_the_start():
    model, context = gpt(1, 2, 20, 7), 5
    sizes, shapes = linear(model), list_parameters(model)
    gmp = {"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0.5, "slope": 0.1, "final": 0.9}}
    group = SparsityGroup.model_validate(gmp)
    live = {n: prod(size) // 2 for n, size in sizes.items()}
    one = flops.count_per_token(model, shapes, context, live, shapes).total
    assert flops.count_run(model, shapes, context, [(group, sizes)], 10, shapes)[0] == 10 * one


@pytest.mark.parametrize("algorithm", ["gmp", "rigl"])
def test_samples_of_a_long_schedule_come_close(algorithm):
    model = gpt(1, 2, 20, 7)
    sizes, shapes = linear(model), list_parameters(model)
    cubic = {"type": "cubic", "final": 0.9, "end": 2000}
    group = SparsityGroup.model_validate({"algorithm": algorithm, "sparsity": cubic, "update": {"freq": 2}})
    count = lambda samples: flops.count_run(model, shapes, 5, [(group, sizes)], 2000, samples=samples)
    whole, few = count(None), count(100)
    assert few[1] == whole[1] and few[0] != whole[0] and few[0] == pytest.approx(whole[0], rel=5e-3)
    assert count(10_000) == whole


def test_samples_of_a_cosine_are_not_all_of_one_place_of_its_swing():
    model = gpt(1, 2, 20, 7)
    sizes, shapes = linear(model), list_parameters(model)
    cosine = {"type": "cosine", "init": 0.9, "half_period": 100}
    group = SparsityGroup.model_validate({"algorithm": "set", "sparsity": cosine, "update": {"freq": 1}})
    count = lambda samples: flops.count_run(model, shapes, 5, [(group, sizes)], 20_000, samples=samples)[0]
    assert count(100) == pytest.approx(count(None), rel=2e-2)


@given(LEVELS, LEVELS, UPDATES, UPDATES, st.sampled_from(["set", "rigl", "mest"]), st.integers(1, 60))
def test_two_groups_of_any_schedules_cost_what_their_steps_cost(one, two, first, second, algorithm, steps):
    model, context = gpt(1, 2, 20, 7), 5
    names, shapes = list(linear(model)), list_parameters(model)
    groups = [
        (SparsityGroup(algorithm=a, sparsity=s, update=u), {n: shapes[n].size for n in part})
        for a, s, u, part in ((algorithm, one, first, names[:2]), ("rigl", two, second, names[2:]))
    ]
    expected = 0
    for step in range(1, steps + 1):  # trains with the masks that the step before left, and then changes them
        live = {n: k for g, sizes in groups for n, k in group_counts(g, sizes, held(g, step - 1)).items()}
        asked = [n for g, sizes in groups if g.needs_dense_gradient and is_update(g.update, step) for n in sizes]
        expected += flops.count_per_token(model, shapes, context, live, (), asked).total
    assert flops.count_run(model, shapes, context, groups, steps)[0] == expected
    repeated = c.Constant | c.Cycling  # of these, samples are as exact
    if isinstance(one, repeated) and isinstance(two, repeated):
        assert flops.count_run(model, shapes, context, groups, steps, samples=2)[0] == expected


@pytest.mark.parametrize("schedule", LONG, ids=lambda s: s.type)
def test_a_long_run_is_counted_without_reading_every_update(schedule, monkeypatch):
    model = gpt(1, 2, 20, 7)
    group, read = SparsityGroup(algorithm="rigl", sparsity=schedule, update=c.Update(freq=1)), []
    monkeypatch.setattr(
        schedules, "value", lambda s, step, update=None, of=schedules.value: read.append(step) or of(s, step, update)
    )
    schedules.check_schedule(group, 200_000)
    schedules.lowest(group, 200_000)
    flops.count_run(model, list_parameters(model), 5, [(group, linear(model))], 200_000, samples=1000)
    assert len(read) < 3000
