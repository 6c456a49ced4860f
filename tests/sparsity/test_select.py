"""Which parameters become sparse, and exact counts of the weights that stay."""

import math
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.models.shapes import list_parameters
from modelzoo.sparsity.select import group_counts, live_count, live_counts, select_parameters

MEDISWIFT = ("*proj_[qkv]_dense_layer.weight", "*proj_output_dense_layer.weight", "*linear_layer.weight")
GPT = dict(hidden_size=8, num_heads=2, num_hidden_layers=2, filter_size=32, vocab_size=11, max_position_embeddings=5)
SHAPES = list_parameters(GPTConfig(**GPT))


class Named(NamedTuple):
    size: tuple[int, ...]
    kind: str


def groups(*filters) -> list[SparsityGroup]:
    return [SparsityGroup(sparsity=0.5, param_filter=f) for f in filters]


def test_the_default_and_mediswifts_filter_take_the_matrices_of_the_decoder():
    by_default, by_filter = select_parameters(SHAPES, groups(None)), select_parameters(SHAPES, groups(MEDISWIFT))
    assert by_default == by_filter
    assert len(by_default[0]) == 2 * 6
    assert sum(SHAPES[n].numel for n in by_default[0]) == 12 * 2 * 8**2


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_norms_biases_and_head_stay_dense_by_default(tied):
    shapes = list_parameters(
        GPTConfig(**GPT, share_embedding_weights=tied, use_bias_in_output=True, embedding_layer_norm=True)
    )
    (names,) = select_parameters(shapes, groups(None))
    assert {shapes[n].kind for n in names} == {"linear"}
    assert {n for n, s in shapes.items() if s.kind == "linear"} == set(names)


def test_it_is_the_kind_that_counts_and_not_the_name():
    shapes = {
        "wte": Named((9, 4), "embedding"), "head": Named((9, 4), "head"), "ln": Named((4,), "norm"),
        "embedding_like": Named((4, 4), "linear"), "embedding_like.bias": Named((4,), "bias"),
    }  # fmt: skip
    assert select_parameters(shapes, groups(None)) == [["embedding_like"]]


def test_a_filter_may_ask_for_embeddings_but_never_gets_vectors():
    (names,) = select_parameters(SHAPES, groups("*"))
    assert set(names) == {n for n, s in SHAPES.items() if len(s.size) > 1}


FILTERS = st.lists(
    st.sampled_from(["*", "*proj_q*", "*proj_[kv]*", "*layers.0.*", "*ffn*", "*weight", "*embed*", "*norm*"]),
    min_size=1, max_size=4,
)  # fmt: skip


@given(FILTERS)
def test_a_parameter_goes_to_the_first_group_that_matches(filters):
    expected = [[] for _ in filters]
    for name, shape in SHAPES.items():
        first = next((i for i, f in enumerate(filters) if fnmatchcase(name, f)), None)
        if first is not None and len(shape.size) > 1:
            expected[first].append(name)
    if all(expected):
        assert select_parameters(SHAPES, groups(*filters)) == expected
    else:
        with pytest.raises(UserError) as e:
            select_parameters(SHAPES, groups(*filters))
        assert f"trainer.init.sparsity.{expected.index([])}.param_filter" in str(e.value)


def test_filters_that_match_nothing_show_what_names_look_like():
    with pytest.raises(UserError) as e:
        select_parameters(SHAPES, groups(None, ["*q_proj*", "*k_proj*"]))
    assert "sparsity.1.param_filter (*q_proj*): matches no weight" in str(e.value)
    assert "model.transformer_decoder.layers.0.self_attn.proj_q_dense_layer.weight" in str(e.value)
    with pytest.raises(UserError, match="belongs to earlier groups"):
        select_parameters(SHAPES, groups(None, "*proj_q*"))
    with pytest.raises(UserError, match="matches no weight"):
        select_parameters(SHAPES, groups("*bias"))
    assert select_parameters(SHAPES, []) == []


# --- counts


@pytest.mark.parametrize(
    "numel,sparsity,live",
    [
        (10, 0.9, 1), (1000, 0.9, 100), (100, 0.29, 71), (10, 0.7, 3), (10**9, 1e-3, 999_000_000), (3, 1e-5, 2),
        (12288 * 49152, 0.9, 60_397_977), (4, 0.75, 1), (3, 0.75, 0), (7, 0.0, 7), (10**15, 0.1, 9 * 10**14),
        (1, 0.999, 0), (5, 1, 0),
    ],
)  # fmt: skip
def test_live_counts_mean_the_written_decimal(numel, sparsity, live):
    assert live_count(numel, sparsity) == live


@given(st.integers(0, 10**12), st.decimals(0, 1, places=6))
def test_live_count_is_the_floor_of_the_decimal(numel, sparsity):
    found = live_count(numel, float(sparsity))
    assert found == math.floor((1 - Fraction(Decimal(sparsity))) * numel)


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_more_sparsity_never_leaves_more(numel, a, b):
    assert live_count(numel, max(a, b)) <= live_count(numel, min(a, b)) <= numel


SIZES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1
)
LEVELS = st.floats(0, 0.999) | st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.001])


@given(SIZES, LEVELS, st.sampled_from(["erk", "erdos_renyi"]))
@example({"a": (1, 1), "b": (60, 60)}, 0.5, "erk")
@example({"a": (1, 60), "b": (60, 60), "c": (2, 2)}, 0.0, "erk")
def test_erk_totals_are_exact_and_every_count_is_possible(sizes, sparsity, distribution):
    numel = {n: a * b for n, (a, b) in sizes.items()}
    counts = live_counts(sizes, sparsity, distribution)
    assert counts.keys() == sizes.keys()
    assert sum(counts.values()) == live_count(sum(numel.values()), sparsity)
    assert all(0 <= counts[n] <= numel[n] for n in sizes)
    # Layers that are not full share one density scale: live weights are as (out + in), but for rounding.
    partial = [n for n in sizes if counts[n] < numel[n] - 1]
    if partial:
        low = max(Fraction(counts[n] - 1, sum(sizes[n])) for n in partial)
        high = min(Fraction(counts[n] + 1, sum(sizes[n])) for n in partial)
        assert low <= high
        # and a full one is full because at that scale it would pass 1
        assert all(high * sum(sizes[n]) >= numel[n] - 1 for n in sizes if counts[n] == numel[n])


@given(SIZES, LEVELS)
def test_uniform_is_each_on_its_own(sizes, sparsity):
    counts = live_counts(sizes, sparsity, "uniform")
    assert counts == {n: live_count(a * b, sparsity) for n, (a, b) in sizes.items()}


def test_erk_by_hand():
    # densities as (out + in) / (out * in): 0.2 and 0.02, on 100 and 10,000 weights: live weights as 20 to 200
    assert live_counts({"a": (10, 10), "b": (100, 100)}, 1 - 220 / 10100, "erk") == {"a": 20, "b": 200}
    # at half sparsity the small one would need 459: it is full, the other takes the rest
    assert live_counts({"a": (10, 10), "b": (100, 100)}, 0.5, "erk") == {"a": 100, "b": 4950}


def test_balanced_groups_round_down_together():
    group = SparsityGroup(algorithm="rigl", sparsity=0.5, balance_in_groups=3)
    assert group_counts(group, {"a": (4, 6), "b": (5, 3)}, 0.5) == {"a": 12, "b": 6}  # 7 of 15 is 3 x 2
    assert group_counts(SparsityGroup(sparsity=0.5), {"a": (4, 6), "b": (5, 3)}, 0.5) == {"a": 12, "b": 7}
