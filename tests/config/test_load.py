"""extends, overrides, and messages: every problem at once, at its line, with what was meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump, load, resolve
from modelzoo.config.loading.merge import merge
from modelzoo.config.trainer import Config

MODEL = "{hidden_size: 8, num_heads: 2, num_hidden_layers: 1, filter_size: 16, vocab_size: 9}"
BASE = f"""\
trainer:
  init:
    seed: 3
    model: {MODEL}
    optimizer:
      AdamW: {{betas: [0.9, 0.95], weight_decay: 0.1}}
    schedulers:
      - SequentialLR:
          schedulers:
            - LinearLR: {{initial_learning_rate: 0.0, end_learning_rate: 6e-4, total_iters: 10}}
            - CosineDecayLR: {{initial_learning_rate: 6e-4, end_learning_rate: 6e-5, total_iters: 90}}
    loop: {{max_steps: 100}}
  fit:
    train_dataloader: {{data_dir: [a, b], batch_size: 4}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    write("base.yaml", BASE)
    return write


def fails(path: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as e:
        load(path, Config, overrides)
    return str(e.value).splitlines()


# --- extends


def test_a_child_changes_what_it_names_and_keeps_the_rest(write):
    write("child.yaml", "extends: base.yaml\ntrainer:\n  init: {seed: 4, loop: {eval_steps: 7}}\n")
    base, child = load("base.yaml", Config), load("child.yaml", Config)
    loop = base.trainer.init.loop.model_copy(update={"eval_steps": 7})
    init = base.trainer.init.model_copy(update={"seed": 4, "loop": loop})
    assert child.trainer == base.trainer.model_copy(update={"init": init})


def test_a_chain_is_relative_to_each_file(write):
    write("deep/one.yaml", "extends: ../base.yaml\ntrainer: {init: {seed: 5, model_dir: one}}\n")
    write("deep/er/two.yaml", "extends: ../one.yaml\ntrainer: {init: {model_dir: two}}\n")
    init = load("deep/er/two.yaml", Config).trainer.init
    assert (init.seed, init.model_dir, init.loop.max_steps) == (5, "two", 100)


def test_lists_replace(write):
    write("child.yaml", "extends: base.yaml\ntrainer: {fit: {train_dataloader: {data_dir: [c]}}}\n")
    assert load("child.yaml", Config).trainer.fit.train_dataloader.data_dir == ("c",)


def test_another_class_replaces_the_parents(write):
    write("child.yaml", "extends: base.yaml\ntrainer: {init: {optimizer: {SGD: {momentum: 0.9}}}}\n")
    optimizer = load("child.yaml", Config).trainer.init.optimizer
    assert (optimizer.name, optimizer.value.momentum, optimizer.value.weight_decay) == ("SGD", 0.9, 0.0)


def test_the_same_class_merges(write):
    write("child.yaml", "extends: base.yaml\ntrainer: {init: {optimizer: {AdamW: {eps: 1e-8}}}}\n")
    value = load("child.yaml", Config).trainer.init.optimizer.value
    assert (value.eps, value.betas, value.weight_decay) == (1e-8, (0.9, 0.95), 0.1)


def test_a_child_may_be_nothing_but_its_parent(write):
    write("child.yaml", "extends: base.yaml\n")
    assert load("child.yaml", Config) == load("base.yaml", Config)


def test_circles_are_refused(write):
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: sub/../a.yaml\n")
    write("sub/keep", "")
    (line,) = fails("a.yaml")
    assert "circle" in line
    write("self.yaml", "extends: self.yaml\n")
    assert "circle" in fails("self.yaml")[0]


def test_a_missing_parent_names_the_line_that_asks_for_it(write):
    write("child.yaml", "# comment\nextends: bass.yaml\n")
    (line,) = fails("child.yaml")
    assert line.startswith("child.yaml:2: ") and "bass.yaml" in line and "did you mean base.yaml?" in line


@pytest.mark.parametrize("value", ["[base.yaml]", "3", "null", "{a: b}"])
def test_extends_takes_one_name(write, value):
    write("child.yaml", f"extends: {value}\n")
    assert fails("child.yaml")[0].startswith("child.yaml:1: extends takes one file name")


def test_each_file_is_named_for_its_own_lines(write):
    write("bad.yaml", BASE.replace("seed: 3", "seed: x"))
    write("child.yaml", "extends: bad.yaml\n\ntrainer: {init: {lopp: {}}}\n")
    lines = fails("child.yaml")
    assert lines[0].startswith("bad.yaml:3: trainer.init.seed") and lines[1].startswith("child.yaml:3: unknown key")


def test_what_a_child_replaced_is_not_blamed_on_the_parent(write):
    write("child.yaml", "extends: base.yaml\ntrainer:\n  init:\n    schedulers:\n      - SequentialLR: {}\n")
    (line,) = fails("child.yaml")
    assert line == "child.yaml:5: missing key 'trainer.init.schedulers.0.SequentialLR.schedulers'"


TREE = st.recursive(
    st.integers(),
    lambda t: st.dictionaries(st.sampled_from("abcAB"), t, max_size=3) | st.lists(t, max_size=2),
    max_leaves=8,
)


@given(TREE)
def test_merging_a_tree_over_itself_or_over_nothing_changes_nothing(tree):
    assert merge(tree, tree) == tree
    assert merge({}, tree) == tree


# --- what another value costs: one rule for extends and --set


def both_ways(write, key: str, value: str) -> list[tuple]:
    """The config and the notes of `key: value` (under trainer.init) in a child, and by --set."""
    write("child.yaml", f"extends: base.yaml\ntrainer: {{init: {{{key}: {value}}}}}\n")
    ways = ("child.yaml", []), ("base.yaml", [f"trainer.init.{key}={value}"])
    return [(load(path, Config, o), [n.text for n in resolve(path, Config, o).notes]) for path, o in ways]


@pytest.mark.parametrize("value", ["AdamW", "{AdamW: }", "{AdamW: {}}", "{AdamW: {weight_decay: 0.1}}"])
def test_the_class_that_is_there_keeps_its_settings(write, value):
    for config, notes in both_ways(write, "optimizer", value):
        assert config == load("base.yaml", Config) and notes == []


@pytest.mark.parametrize("value", ["SGD", "{SGD: }", "{SGD: {momentum: 0.9}}"])
def test_another_class_says_what_is_lost(write, value):
    for config, notes in both_ways(write, "optimizer", value):
        assert config.trainer.init.optimizer.name == "SGD"
        (note,) = notes
        lost = "SGD takes the place of AdamW (base.yaml:5), whose settings go: betas, weight_decay"
        assert note.endswith(f"trainer.init.optimizer: {lost}")
        assert note.startswith(("child.yaml:2: ", "--set trainer.init.optimizer="))


def test_a_mapping_merges_either_way_and_null_clears(write):
    for config, notes in both_ways(write, "loop", "{eval_steps: 7}"):
        assert (config.trainer.init.loop.max_steps, config.trainer.init.loop.eval_steps) == (100, 7) and notes == []
    for config, notes in both_ways(write, "optimizer", "null"):
        assert config.trainer.init.optimizer is None and notes == []


def test_a_number_or_a_list_in_place_of_a_mapping_says_what_is_lost(write):
    sparse = BASE.replace("    seed: 3\n", "    seed: 3\n    sparsity: {algorithm: rigl, sparsity: 0.5, seed: 4}\n")
    write("base.yaml", sparse)
    for value in ("0.75", "[0.75]"):
        for config, notes in both_ways(write, "sparsity", value):
            assert config.trainer.init.sparsity[0].algorithm == "static"
            (note,) = notes
            assert "a mapping (base.yaml:4), whose settings go: algorithm, sparsity, seed" in note


def test_another_type_of_schedule_replaces_and_says_so(write):
    base = "    sparsity: {algorithm: gmp, sparsity: {type: linear, init: 0.1, slope: 0.01}}\n"
    write("base.yaml", BASE.replace("    seed: 3\n", "    seed: 3\n" + base))
    cubic = "{sparsity: {type: cubic, final: 0.5, end: 9}}"
    for config, notes in both_ways(write, "sparsity", cubic):
        assert config.trainer.init.sparsity[0].sparsity.type == "cubic"
        assert len(notes) == 1 and notes[0].endswith("settings go: type, init, slope")
    for config, notes in both_ways(write, "sparsity", "{sparsity: {type: linear, init: 0.2}}"):
        schedule = config.trainer.init.sparsity[0].sparsity
        assert (schedule.init, schedule.slope, notes) == (0.2, 0.01, [])


def test_a_key_below_a_bare_name_is_one_of_that_class(write):
    write("base.yaml", BASE.replace("      AdamW: {betas: [0.9, 0.95], weight_decay: 0.1}\n", "      SGD\n"))
    assert load("base.yaml", Config, ["trainer.init.optimizer.SGD.momentum=0.5"]).trainer.init.optimizer.value.momentum
    (line,) = fails("base.yaml", "trainer.init.optimizer.AdamW.eps=1e-8")
    assert "takes exactly one of AdamW, Adam, SGD; got AdamW, SGD" in line


# --- overrides


@pytest.mark.parametrize(
    "override,where,value",
    [
        ("trainer.init.seed=9", lambda t: t.init.seed, 9),
        ("trainer.init.optimizer.AdamW.weight_decay=6e-4", lambda t: t.init.optimizer.value.weight_decay, 6e-4),
        ("trainer.init.optimizer.AdamW.betas.1=0.99", lambda t: t.init.optimizer.value.betas, (0.9, 0.99)),
        ("trainer.fit.train_dataloader.data_dir.0=c", lambda t: t.fit.train_dataloader.data_dir, ("c", "b")),
        ("trainer.fit.train_dataloader.data_dir=c=d", lambda t: t.fit.train_dataloader.data_dir, ("c=d",)),
        ("trainer.fit.train_dataloader.data_dir=[c, no]", lambda t: t.fit.train_dataloader.data_dir, ("c", "no")),
        ("trainer.init.loop.eval_frequency=null", lambda t: t.init.loop.eval_frequency, None),
        ("trainer.init.loop.eval_frequency=", lambda t: t.init.loop.eval_frequency, None),
        ("trainer.init.checkpoint.steps=5", lambda t: t.init.checkpoint.steps, 5),
        ("trainer.init.optimizer={SGD: {momentum: 0.5}}", lambda t: t.init.optimizer.value.momentum, 0.5),
        ("trainer.init.sparsity.sparsity=0.5", lambda t: t.init.sparsity[0].sparsity.value, 0.5),
        ("trainer.init.sparsity=50%", lambda t: t.init.sparsity[0].sparsity.value, 0.5),
        ("trainer.init.sparsity=0.75", lambda t: t.init.sparsity[0].sparsity.value, 0.75),
        (
            "trainer.init.schedulers.0.SequentialLR.schedulers.0.LinearLR.total_iters=20",
            lambda t: t.init.schedulers[0].value.starts,
            (0, 20),
        ),
    ],
)
def test_overrides(write, override, where, value):
    assert where(load("base.yaml", Config, [override]).trainer) == value


def test_the_last_override_wins_and_later_ones_build_on_earlier(write):
    trainer = load(
        "base.yaml",
        Config,
        [
            "trainer.init.seed=4",
            "trainer.init.seed=5",
            "trainer.init.sparsity=0.5",
            "trainer.init.sparsity.sparsity=0.25",
        ],
    ).trainer
    assert trainer.init.seed == 5 and trainer.init.sparsity[0].sparsity.value == 0.25


@pytest.mark.parametrize(
    "override,words",
    [
        ("trainer.init.seed", "write key=value"),
        ("=3", "write key=value"),
        ("trainer..seed=3", "write key=value"),
        ("trainer.init.sead=3", "unknown key 'trainer.init.sead'; did you mean 'seed'?"),
        ("trainer.init.sead.deeper=3", "unknown key 'trainer.init.sead'; did you mean 'seed'?"),
        ("trainer.init.seed=x", "trainer.init.seed: takes an integer, got 'x'"),
        ("trainer.init.seed=null", "trainer.init.seed: takes an integer, got null"),
        ("trainer.init.seed.x=1", "trainer.init.seed"),
        ("trainer.fit.train_dataloader.data_dir.2=c", "data_dir is a list of 2; name an item by number from 0"),
        ("trainer.fit.train_dataloader.data_dir.x=c", "data_dir is a list of 2; name an item by number from 0"),
        (f"trainer.fit.train_dataloader.data_dir.{'9' * 5000}=c", "data_dir is a list of 2; name an item by number"),
        ("trainer.fit.train_dataloader.data_dir.-1=c", "data_dir is a list of 2; name an item by number from 0"),
        ("trainer.fit.train_dataloader.data_dir.0.x=c", "data_dir.0 is 'a', which has no keys"),
        ("trainer.init.seed=[1", "not valid YAML"),
        ("trainer.init.optimizer={SGD: {momentum: 0.1, momentum: 0.2}}", "duplicate key"),
        ("trainer.init.optimizer.SGD.lr=0.1", "takes exactly one of"),
    ],
)
def test_override_errors_are_one_line_that_names_the_override(write, override, words):
    (line,) = fails("base.yaml", override)
    assert words in line
    assert "--set" in line or "exactly one" in line


# --- files


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"just words\n", "holds a str"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", "not UTF-8 text"),
        (b"trainer: {init: {model: {hidden_size: 8", "not valid YAML"),
    ],
)
def test_files_that_are_no_config(write, tmp_path, content, words):
    (tmp_path / "bad.yaml").write_bytes(content)
    (line,) = fails("bad.yaml")
    assert line.startswith("bad.yaml:") and words in line


def test_missing_files(write, tmp_path):
    assert fails("bas.yaml") == ["bas.yaml: no such config file; did you mean base.yaml?"]
    assert "there is no folder nowhere" in fails("nowhere/base.yaml")[0]
    assert "is a folder" in fails(str(tmp_path))[0]


# --- messages


def test_all_problems_come_at_once_each_at_its_line(write):
    write(
        "bad.yaml",
        """\
trainer:
  init:
    seed: true
    model:
      hidden_size: "768"
      num_layers: 3
      dropout_rate: no
      filter_size: 3072.0
      num_heads: 1_2
      nonlinearity: gelo
    optimizer:
      Adamw: {}
    loop:
      max_steps: 5
      max_steps: 0
      eval_frequency: 1.5
    precision: {enabled: yes}
    callbacks: [ComputeNrom]
    sparsity: [{sparsity: "0.5"}, {sparsity: {type: consine}}]
  fit:
    train_dataloader: {batch_size: 0.5, data_dir: x}
    val_dataloader: 3
  fitt: {}
""",
    )
    lines = fails("bad.yaml")
    expected = [
        (15, "duplicate key 'trainer.init.loop.max_steps' (first on line 14)"),
        (3, "trainer.init.seed: takes an integer, got true"),
        (5, "trainer.init.model.hidden_size: takes an integer, got '768'; write the number without quotes"),
        (6, "unknown key 'trainer.init.model.num_layers'; did you mean 'num_hidden_layers'?"),
        (7, "trainer.init.model.dropout_rate: takes a number, got 'no'"),
        (8, "trainer.init.model.filter_size: takes an integer, got 3072.0; write 3072"),
        (9, "trainer.init.model.num_heads: takes an integer, got '1_2'; write 12"),
        (10, "trainer.init.model.nonlinearity: takes 'gelu'"),
        (12, "unknown key 'trainer.init.optimizer.Adamw'; did you mean 'AdamW'?"),
        (15, "trainer.init.loop.max_steps: must be above 0, got 0"),
        (16, "trainer.init.loop.eval_frequency: takes an integer or must be at most 1"),
        (17, "trainer.init.precision.enabled: takes true or false, got 'yes'; write true"),
        (18, "trainer.init.callbacks.0: unknown name 'ComputeNrom'; did you mean 'ComputeNorm'?"),
        (19, "trainer.init.sparsity.0.sparsity: takes a number"),
        (19, "trainer.init.sparsity.1.sparsity: unknown type 'consine'; did you mean 'cosine'?"),
        (21, "trainer.fit.train_dataloader.batch_size: takes an integer, got 0.5"),
        (22, "trainer.fit.val_dataloader: takes a mapping of keys to values, got 3"),
        (23, "unknown key 'trainer.fitt'; did you mean 'fit'?"),
    ]
    for line, (number, words) in zip(lines, expected):
        assert line.startswith(f"bad.yaml:{number}: ") and words in line
    assert len(lines) == len(expected)


def test_an_alias_is_blamed_where_it_is_used(write):
    text = (
        BASE + "    val_dataloader: &v {data_dir: v, batch_size: 4, shufle: true}\n  validate: {val_dataloader: *v}\n"
    )
    write("bad.yaml", text)
    at = text.splitlines().index("  validate: {val_dataloader: *v}")
    lines = fails("bad.yaml")
    assert len(lines) == 2 and all("did you mean 'shuffle'" in line for line in lines)
    assert lines[0].startswith(f"bad.yaml:{at}: ")


def test_missing_sections_are_named(write):
    write("bad.yaml", "trainer:\n  init:\n    seed: 1\n")
    assert fails("bad.yaml") == ["bad.yaml:2: missing key 'trainer.init.model'"]
    write("bad.yaml", "trainr: {}\n")
    assert "bad.yaml:1: unknown key 'trainr'; did you mean 'trainer'?" in fails("bad.yaml")


# --- dumps


def test_a_dump_reloads_to_an_equal_object_with_its_comment(write):
    config = load("base.yaml", Config, ["trainer.init.sparsity=0.5", "trainer.init.callbacks=[ComputeNorm]"])
    write("again.yaml", dump(config, "resolved config of\n`run.py`"))
    assert load("again.yaml", Config) == config
    with open("again.yaml") as f:
        assert f.read().startswith("# resolved config of\n# `run.py`\n")


@pytest.mark.parametrize(
    "key,there",
    [
        ("trainer.init.max_steps", "; it is trainer.init.loop.max_steps"),
        ("sparsity", "; it is trainer.init.sparsity"),
        ("trainer.init.betas", "; it is trainer.init.optimizer.AdamW.betas or trainer.init.optimizer.Adam.betas"),
        ("trainer.init.model.dropout", "; did you mean 'dropout_rate', or trainer.init.lora.dropout?"),
        ("trainer.init.sparsty", "; did you mean 'sparsity'?"),
    ],
)  # fmt: skip
def test_a_key_in_the_wrong_place_is_looked_up_in_the_whole_schema(key, there):
    with pytest.raises(UserError, match=f"{re.escape(f'unknown key {key!r}{there}')}$"):
        load("configs/quickstart/s75.yaml", Config, [f"{key}=1"])


@pytest.mark.parametrize(
    "setting,text",
    [
        ("model.position_embedding_type=none", "or 'alibi', got 'none'; write null"),
        ("model.share_embedding_weights='false'", "takes true or false, got 'false'; write false, without quotes"),
        ("optimizer.AdamW.betas=[0.9]", "optimizer.AdamW.betas: item 1 (from 0) is missing"),
        ("loop.eval_frequency=-1", "loop.eval_frequency: must be at least 0, got -1"),
        ("schedulers=[{SequentialLR: {schedulers: [{ConstantLR: {}}]}}]", "missing key"),
    ],
)
def test_a_value_of_the_wrong_form_is_one_line_with_the_right_one(setting, text):
    with pytest.raises(UserError) as e:
        load("configs/quickstart/s75.yaml", Config, [f"trainer.init.{setting}"])
    assert text in str(e.value) and len(str(e.value).splitlines()) == 1
