"""Lengths as shares of a run: resolved where steps are named and nowhere else; a dumped config is the same run."""

import types
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config import trainer
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump, load
from modelzoo.config.sections import optim, sparsity_schedules
from modelzoo.config.trainer import Config
from modelzoo.config.values import shares

TEXT = """trainer:
  init:
    model: {{hidden_size: 16, num_heads: 2, num_hidden_layers: 1, filter_size: 32, vocab_size: 37}}
    optimizer: {{AdamW: {{}}}}
    loop: {loop}
    checkpoint: {{steps: 25%}}
    schedulers:
      - SequentialLR:
          schedulers:
            - LinearLR: {{initial_learning_rate: 0.0, end_learning_rate: 1e-3, total_iters: 10%}}
            - CosineDecayLR: {{initial_learning_rate: 1e-3, end_learning_rate: 1e-4, total_iters: 90%}}
          milestones: [10%]
    sparsity:
      algorithm: rigl
      sparsity: {{type: cubic, final: 0.75, begin: 0%, end: 50%}}
      update: {{freq: 5%, stop: 75%}}
      drop_fraction: {{type: cosine, init: 0.3, half_period: 75%}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "c.yaml").write_text(text)
        return str(tmp_path / "c.yaml")

    return write


@given(st.floats(0.01, 200), st.integers(1, 100_000))
def test_a_percentage_is_a_share_of_the_steps(percent, steps):
    text = f"{percent:f}%"
    found = shares.resolve({"init": {"loop": {"max_steps": steps}, "sparsity": [{"update": {"steps": [text, 3]}}]}})
    assert found["init"]["sparsity"][0]["update"]["steps"] == [max(1, round(float(text[:-1]) * steps / 100)), 3]


@pytest.mark.parametrize(
    "loop", ["{max_steps: 400}", "{num_steps: 400}", "{num_epochs: 4, steps_per_epoch: 100}"], ids=lambda x: x[1:9]
)
def test_every_length_of_a_schedule_may_be_a_share(write, loop):
    init = load(write(TEXT.format(loop=loop)), Config).trainer.init
    sequence, (group,) = init.schedulers[0].value, init.sparsity
    assert [s.value.total_iters for s in sequence.schedulers] == [40, 360] and sequence.milestones == (40,)
    assert (group.update.freq, group.update.stop, group.drop_fraction.half_period) == (20, 300, 300)
    assert (group.sparsity.begin, group.sparsity.end, init.checkpoint.steps) == (0, 200, 100)


def test_a_dumped_config_is_the_same_run_even_with_another_length(write, tmp_path):
    config = load(write(TEXT.format(loop="{max_steps: 400}")), Config)
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(tmp_path / "dumped.yaml", Config) == config
    longer = load(tmp_path / "dumped.yaml", Config, ["trainer.init.loop.max_steps=800"]).trainer.init
    assert longer.sparsity == config.trainer.init.sparsity and longer.schedulers == config.trainer.init.schedulers


def test_flags_change_the_length_and_shares_follow(write):
    config = load(write(TEXT.format(loop="{max_steps: 400}")), Config, ["trainer.init.loop.max_steps=40"])
    assert config.trainer.init.sparsity[0].update.stop == 30


def test_a_share_of_an_unknown_length_is_refused_at_its_line(write):
    with pytest.raises(UserError, match=r"c\.yaml:6: trainer\.init\.checkpoint\.steps: 25% is") as e:
        load(write(TEXT.format(loop="{num_epochs: 2}")), Config)
    assert "25% is a share of the run's steps" in str(e.value) and "max_steps" in str(e.value)
    load(write(TEXT.format(loop="{num_epochs: 2}").replace("%", "")), Config)  # without shares it need not be known


@pytest.mark.parametrize(
    "key", ["trainer.init.seed", "trainer.init.loop.eval_steps", "trainer.init.sparsity.max_sparsity"]
)
def test_elsewhere_a_share_is_no_number(write, key):
    with pytest.raises(UserError, match=rf"{key}.*got '5%'; this key takes no share of the run"):
        load(write(TEXT.format(loop="{max_steps: 400}").replace("25%", "25")), Config, [f"{key}=5%"])


def test_sections_that_are_no_mappings_are_left_to_the_schema(write):
    for broken in (
        "trainer: 3",
        "trainer: {init: 75%}",
        "trainer: {init: {loop: 75%, sparsity: {update: {freq: 5%}}}}",
    ):
        with pytest.raises(UserError):
            load(write(broken + "\n"), Config)


def test_every_key_that_names_steps_of_a_schedule_may_be_a_share():
    """And no key is on the list that the schema does not have."""
    schedules = [f.annotation for f in optim.Scheduler.model_fields.values()]
    models = [m for annotation in schedules for m in typing.get_args(annotation) if m is not type(None)]
    models += [sparsity_schedules.Update, sparsity_schedules.Cubic, sparsity_schedules.Cosine]
    numbers = {k for m in models for k, f in m.model_fields.items() if int in _types(f.annotation)} | {
        "half_period", "warmup_steps", "regrow_warmup",
    }  # fmt: skip
    assert numbers - {"step_exponent", "T_mult"} == shares.LENGTHS - {"eval_frequency", "log_steps"}
    assert {"eval_frequency"} <= set(trainer.Loop.model_fields) and {"log_steps"} <= set(trainer.Logging.model_fields)


def _types(annotation: object) -> set:
    """The types that an annotation is made of."""
    if typing.get_origin(annotation) is typing.Literal:
        return set()
    inner = [a for a in typing.get_args(annotation) if isinstance(a, type | types.GenericAlias | types.UnionType)
             or typing.get_origin(a) is not None]  # fmt: skip
    return set().union(*map(_types, inner)) if inner else {annotation}


@pytest.mark.parametrize(
    ("length", "what"),
    [
        ("1e3", "takes an integer, got 1000.0; write 1000"),
        ("30_000", "takes an integer, got '30_000'; write 30000"),
        ("0", "must be above 0, got 0"),
        ("99999999999999999999", f"must be at most {2**63 - 1}, got 99999999999999999999"),
    ],
)
def test_a_length_that_is_none_is_what_is_reported_and_not_the_shares_of_it(write, length, what):
    with pytest.raises(UserError) as e:
        load(write(TEXT.format(loop=f"{{max_steps: {length}}}")), Config)
    assert str(e.value).splitlines() == [e.value.args[0]] and str(e.value).endswith(f"loop.max_steps: {what}")
