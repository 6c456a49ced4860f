"""What runs differ in is found key by key, and their losses are compared at shared steps only."""

from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.differences import flat, keys
from modelzoo.config.loading.load import _override, dump, validate
from modelzoo.config.loading.yaml12 import parse
from modelzoo.config.trainer import Config
from modelzoo.study.reports.differences import format_differences, list_gaps
from tests.support import config

LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.lists(st.integers(), max_size=3))
TREES = st.recursive(LEAVES, lambda t: st.dictionaries(st.sampled_from("abc"), t, min_size=1, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from("xyz"), TREES, max_size=3))
def test_flat_keys_lead_to_their_values(tree):
    for key, value in flat(tree).items():
        at = tree
        for part in key.split(".") if key else ():
            at = at[part]
        assert at == value


def test_setting_what_differs_makes_the_configs_equal():
    """The keys and values named are overrides that turn one config into the other."""
    a = config(sparsity={"sparsity": 0.75}, seed=3)
    b = config(sparsity={"sparsity": 0.5, "init_method": "topk"}, seed=4)
    found = keys([a, b])
    assert set(found) == {
        "trainer.init.seed", "trainer.init.sparsity.0.sparsity.value", "trainer.init.sparsity.0.init_method",
    }  # fmt: skip
    doc = parse(dump(a), "a")
    for key, (_, theirs) in found.items():
        _override(doc, f"{key}={theirs}")
    assert validate(doc, Config) == b


def test_equal_configs_and_keys_of_one_alone():
    assert format_differences(["a", "b"], [config(), config()]) == "configs    are the same"
    found = keys([config(), config(sparsity=0.5)])
    assert found["trainer.init.sparsity.0.algorithm"] == ["-", '"static"']
    assert "init.sparsity.0.algorithm" in format_differences(["a", "b"], [config(), config(sparsity=0.5)])


@given(st.dictionaries(st.integers(1, 20), st.floats(0, 9)), st.dictionaries(st.integers(1, 20), st.floats(0, 9)))
def test_losses_are_compared_where_both_have_one(a, b):
    log = lambda d: [{"step": s, "loss": x} for s, x in d.items()]
    assert dict(list_gaps(log(a), log(b))) == {s: b[s] - a[s] for s in a.keys() & b.keys()}
