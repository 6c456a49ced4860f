"""Patterns over parameter names: globs and regular expressions, and a slip of the pen in any of a list is refused."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.values.patterns import check_match, matches
from modelzoo.models.shapes import find_lora_targets, list_parameters
from modelzoo.planning import plan
from tests.support import TINY, config

NAMES = st.text("abf.01_[", max_size=12)


@given(NAMES, st.text("abf.*?_", max_size=8))
def test_a_pattern_is_a_glob_or_a_regular_expression(name, text):
    assert matches(name, text) == fnmatchcase(name, text)
    expression = text.replace("*", ".*").replace("?", ".")
    assert matches(name, f"re:{expression}") == bool(re.search(expression, name))


@given(st.lists(NAMES, min_size=1, max_size=6), st.lists(st.text("abf*", min_size=1, max_size=4), max_size=4))
def test_each_pattern_must_match_something(names, patterns):
    idle = next((p for p in patterns if not any(fnmatchcase(n, p) for n in names)), None)
    if idle is None:
        check_match("key", patterns, names, "weight")
    else:
        with pytest.raises(UserError) as e:
            check_match("key", patterns, names, "weight")
        assert str(e.value).startswith(f"key ({idle}): matches no weight; names look like ")


def refused(**init) -> str:
    with pytest.raises(UserError) as e:
        plan.check_sparsity(config(**init).trainer.init, 10)
        find_lora_targets(config(**init).trainer.init.model, config(**init).trainer.init.lora)
    assert "\n" not in str(e.value)
    return str(e.value)


LAYER = "model.transformer_decoder.layers.0"


def test_a_mistyped_pattern_among_good_ones_names_the_nearest():
    good = ["*proj_[qkv]_dense_layer.weight", "re:proj_output.*weight$"]
    plan.check_sparsity(config(sparsity={"sparsity": 0.5, "param_filter": good}).trainer.init, 10)
    said = refused(sparsity={"sparsity": 0.5, "param_filter": [*good, "*ffn.1.linear_leyer.weight"]})
    assert said == (
        "trainer.init.sparsity.0.param_filter (*ffn.1.linear_leyer.weight): matches no weight; names look like "
        f"{LAYER}.ffn.ffn.1.linear_layer.weight"
    )
    pieces = refused(sparsity={"sparsity": 0.5, "param_filter": [*good, "*proj_q*weigth"]})
    assert pieces.endswith(f"names look like {LAYER}.self_attn.proj_q_dense_layer.weight")
    second = [{"sparsity": 0.5, "param_filter": good}, {"sparsity": 0.5, "param_filter": ["*ffn*weight", "*norm1*"]}]
    assert "sparsity.1.param_filter (*norm1*): matches no weight" in refused(sparsity=second)  # norms are vectors


def test_other_lists_of_patterns_are_held_to_the_same():
    said = refused(lora={"target_modules": ["*proj_q_dense_layer", "*proj_vv_dense_layer"]})
    assert "trainer.init.lora.target_modules (*proj_vv_dense_layer): matches no linear module" in said
    assert said.endswith(f"{LAYER}.self_attn.proj_v_dense_layer")
    groups = {"embedding": {"param_filter_patterns": ["*embedding*weight", "*embeding*"], "scale": 2.0}}
    said = refused(model={**TINY, "lr_adjustment_groups": groups})
    assert "lr_adjustment_groups.embedding.param_filter_patterns (*embeding*): matches no parameter" in said
    assert said.endswith("embeddings.weight") or "embedding" in said.rpartition(" ")[2]


def test_what_a_broken_expression_is():
    for init in (
        {"sparsity": {"sparsity": 0.5, "param_filter": "re:a(b"}},
        {"lora": {"target_modules": "re:a(b"}},
        {"model": {**TINY, "lr_adjustment_groups": {"embedding": {"param_filter_patterns": "re:a(b"}}}},
    ):
        with pytest.raises(ValueError, match=r"'re:a\(b' is no regular expression"):
            config(**init)


def test_an_expression_and_its_globs_choose_the_same_weights():
    names = list(list_parameters(config().trainer.init.model))
    for expression, globs in (
        (r"proj_(q|k)_dense_layer\.weight$", ["*proj_q_dense_layer.weight", "*proj_k_dense_layer.weight"]),
        (r"layers\.1\..*weight", ["*layers.1.*weight*"]),
    ):
        assert [n for n in names if matches(n, f"re:{expression}")] == [
            n for n in names if any(matches(n, g) for g in globs)
        ]
