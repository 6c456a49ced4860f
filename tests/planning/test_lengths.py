"""Schedules and the run's length: each disagreement is one line, and what no run can do is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load, resolve, validate
from modelzoo.config.trainer import Config, Init
from modelzoo.optim.lr import rate_at
from modelzoo.planning import plan, plan_text
from modelzoo.planning.lengths import count_epoch, note_lengths
from modelzoo.sparsity.schedules import next_update, update_steps
from modelzoo.study.matrix import budget
from tests.support import TINY, config, examples, write_shard

COSINE = {"initial_learning_rate": 1e-2, "end_learning_rate": 1e-3}
WARM = {"initial_learning_rate": 0.0, "end_learning_rate": 1e-2, "total_iters": 10}


def init(**sections) -> Init:
    return config(optimizer={"AdamW": {} if "schedulers" in sections else {"lr": 1e-3}}, **sections).trainer.init


def rate(*schedulers) -> Init:
    return init(schedulers=[{"SequentialLR": {"schedulers": list(schedulers)}}])


def test_a_rate_that_fits_the_run_is_no_note():
    fitting = rate({"LinearLR": WARM}, {"CosineDecayLR": {**COSINE, "total_iters": 90}})
    assert note_lengths(fitting, 100) == []
    assert note_lengths(init(schedulers=[{"ConstantLR": {"learning_rate": 1e-3}}]), 100) == []
    assert note_lengths(init(schedulers=[{"LinearLR": WARM}]), 100) == []  # warm up, then stay: a schedule like another
    assert note_lengths(init(), 100) == []


def test_a_rate_of_another_length_is_one_line():
    made = rate({"LinearLR": WARM}, {"CosineDecayLR": {**COSINE, "total_iters": 90}})
    (short,) = note_lengths(made, 50)
    assert short == (
        f"learning rate: its schedule is 100 steps long, the run 50: the rate is {rate_at(made, 49):.3g} at the last "
        "step, and never gets to 0.001"
    )
    (long,) = note_lengths(made, 1000)
    assert long.endswith("100 steps long, the run 1,000: the rate is 0.001 at step 100 and stays so")
    back = init(schedulers=[{"CosineAnnealingLR": {"initial_learning_rate": 1e-2, "T_max": 100}}])
    assert "the rate is 0 at step 100 and goes on to 0.01" in note_lengths(back, 200)[0]


CLASSES = {
    "polynomial": {"PolynomialLR": {**COSINE, "total_iters": 100}},
    "one cycle": {"OneCycleLR": {"initial_learning_rate": 1e-4, "max_lr": 1e-2, "total_steps": 100}},
    "milestones": {"MultiStepLR": {"initial_learning_rate": 1e-2, "gamma": 0.1, "milestones": [50, 100]}},
    "pieces": {"PiecewiseConstantLR": {"learning_rates": [1e-2, 1e-3], "milestones": [100]}},
    "wrapped": {"ScalePerParamLR": {"scheduler": {"LinearLR": {**COSINE, "total_iters": 100}}}},
    "chained": {"ChainedLR": {"schedulers": [{"ConstantLR": {"learning_rate": 1e-2}},
                                             {"LinearLR": {**COSINE, "total_iters": 100}}]}},
}  # fmt: skip


@pytest.mark.parametrize("scheduler", CLASSES.values(), ids=CLASSES)
def test_every_class_that_has_a_length_is_asked_for_it(scheduler):
    assert len(note_lengths(init(schedulers=[scheduler]), 60)) == 1
    assert note_lengths(init(schedulers=[scheduler]), 101) == []
    assert len(note_lengths(init(schedulers=[scheduler]), 200)) == (
        "Milestones" not in str(scheduler) and "milestones" not in str(scheduler)
    )


@pytest.mark.parametrize("scheduler", [
    {"ExponentialLR": {"initial_learning_rate": 1e-2, "total_iters": 1000, "decay_rate": 0.9}},
    {"StepLR": {"initial_learning_rate": 1e-2, "step_size": 1000, "gamma": 0.5}},
    {"CyclicLR": {"base_lr": 1e-3, "max_lr": 1e-2}},
    {"InverseSquareRootDecayLR": {"initial_learning_rate": 1e-2}},
], ids=lambda s: next(iter(s)))  # fmt: skip
def test_a_schedule_without_an_end_has_no_length(scheduler):
    assert note_lengths(init(schedulers=[scheduler]), 20) == []


GMP = {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.75, "end": 100}, "update": {"freq": 10}}


def test_masks_that_reach_their_target_are_no_note():
    assert note_lengths(init(sparsity=GMP), 100) == note_lengths(init(sparsity=GMP), 1000) == []
    assert (
        note_lengths(init(sparsity={"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 10, "stop": 50}}), 60)
        == []
    )
    assert note_lengths(init(sparsity=0.75), 1) == []


def test_masks_that_stop_short_of_their_target_are_one_line():
    assert note_lengths(init(sparsity=GMP), 59) == [
        "sparsity (gmp): masks end at sparsity 0.6562 and not at 0.75: their last update is after step 50, of 59 steps"
    ]
    stopped = {**GMP, "update": {"freq": 10, "stop": 60}}
    assert "step 50, after which masks change no more (`update`)" in note_lengths(init(sparsity=stopped), 1000)[0]
    opened = {"algorithm": "set", "sparsity": {"type": "linear", "init": 0.75, "slope": -0.01, "final": 0.0}}
    assert "end at sparsity 0.25 and not at 0" in note_lengths(init(sparsity=opened), 50)[0]


def test_masks_that_never_change_are_one_line():
    assert note_lengths(init(sparsity=GMP), 9) == [
        "sparsity (gmp): masks never change in this run: the first update is after step 10, of 9 steps"
    ]
    assert "the model is frozen" in note_lengths(init(sparsity=GMP, lora={}), 100)[0]
    groups = [{**GMP, "param_filter": "*ffn*weight"}, {"sparsity": 0.5, "param_filter": "*attn*weight"}]
    assert [n.partition(":")[0] for n in note_lengths(init(sparsity=groups), 9)] == ["sparsity (gmp, group 0)"]


def test_a_cosine_that_turns_back_is_one_line():
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 10}}
    fraction = {"type": "cosine", "init": 0.3, "half_period": 60}
    assert note_lengths(init(sparsity={**rigl, "drop_fraction": fraction}), 60) == []
    (note,) = note_lengths(init(sparsity={**rigl, "drop_fraction": fraction}), 100)
    assert note.endswith(
        "drop_fraction is at its minimum at step 60 (half_period) and goes back until the last update, 100"
    )


UPDATES = st.one_of(
    st.none(),
    st.builds(lambda f, a, n: {"freq": f, "start": a, "stop": None if n is None else a + n},
              st.integers(1, 9), st.integers(0, 12), st.none() | st.integers(1, 20)),
    st.builds(lambda x: {"steps": x}, st.lists(st.integers(0, 40), min_size=1, max_size=4)),
)  # fmt: skip


@given(UPDATES, st.integers(0, 30))
def test_masks_that_no_run_changes_are_refused_and_no_others(update, step):
    made = init(sparsity={"algorithm": "set", "sparsity": 0.5, "update": update})
    found = made.sparsity[0].update
    later = [s for s in update_steps(found, 100) if s > step]
    assert next_update(found, step) == (later[0] if later else None)
    if any(True for _ in update_steps(found, 100)):
        plan.check_sparsity(made, 1)
    else:
        with pytest.raises(UserError, match="`update` names no step after the first masks"):
            plan.check_sparsity(made, None)


def test_plan_shows_the_rate_and_the_notes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cosine = [{"CosineDecayLR": {**COSINE, "total_iters": 100}}]
    made = config(optimizer={"AdamW": {}}, schedulers=cosine, sparsity=GMP, loop={"max_steps": 50})
    group = {"param_filter_patterns": "*embedding*weight", "scale": 0.25}
    scaled = config(
        optimizer={"AdamW": {}}, schedulers=cosine, loop={"max_steps": 50},
        model={**TINY, "lr_adjustment_groups": {"embedding": group}},
    )  # fmt: skip
    assert "           times 0.25 for embedding (model.lr_adjustment_groups)" in plan_text.describe_plan(scaled)
    lines = plan_text.describe_plan(made).splitlines()
    first, middle, last = (f"{rate_at(made.trainer.init, s):.3g}" for s in (0, 25, 49))
    assert f"rate       {first} at 0 % of the run, {middle} at 50 %, {last} at 100 % (its last step)" in lines
    assert lines[-2:] == [f"note       {note}" for note in note_lengths(made.trainer.init, 50)]


def test_shares_of_epochs_are_counted_by_the_manifest(tmp_path):
    data = tmp_path / "train"
    data.mkdir()
    (data / "manifest.json").write_text(json.dumps({"n_examples": 43, "msl": 8}))
    text = f"""trainer:
  init:
    model: {{hidden_size: 16, num_heads: 2, num_hidden_layers: 1, filter_size: 32, vocab_size: 37}}
    loop: {{num_epochs: 5}}
    sparsity: {{algorithm: set, sparsity: 0.5, update: {{freq: 10%, stop: 50%}}}}
  fit: {{train_dataloader: {{data_dir: {data}, batch_size: 4}}}}
"""
    (tmp_path / "c.yaml").write_text(text)
    doc = resolve(tmp_path / "c.yaml", Config)
    count_epoch(doc)
    group = validate(doc, Config).trainer.init.sparsity[0]
    assert (group.update.freq, group.update.stop) == (5, 25)  # 43 examples are ten batches
    (tmp_path / "plain.yaml").write_text(text.replace("10%", "10").replace("50%", "50"))
    plain = resolve(tmp_path / "plain.yaml", Config)
    before = json.dumps(plain.data)
    count_epoch(plain)
    assert json.dumps(plain.data) == before  # a config without shares is left alone


def test_a_run_says_it_at_its_start_and_costs_what_was_foretold(tmp_path, capsys):
    """From the command line to the log: the notes of a run that is too short, and FLOPs as foretold."""
    data = tmp_path / "train"
    write_shard(data / "output_chunk_0_0.h5", examples(16))
    (tmp_path / "c.yaml").write_text(f"""trainer:
  init:
    model: {{hidden_size: 16, num_heads: 2, num_hidden_layers: 1, filter_size: 32, vocab_size: 37,
            max_position_embeddings: 8}}
    optimizer: {{AdamW: {{}}}}
    precision: {{enabled: false}}
    schedulers: [{{CosineDecayLR: {{initial_learning_rate: 1e-2, end_learning_rate: 0.0, total_iters: 40}}}}]
    sparsity:
      - {{algorithm: rigl, sparsity: 0.75, param_filter: '*ffn*weight', update: {{freq: 25%}}}}
      - {{algorithm: gmp, sparsity: {{type: linear, init: 0.0, slope: 0.05, final: 0.9}}, update: {{freq: 2}}}}
    loop: {{max_steps: 8}}
  fit: {{train_dataloader: {{data_dir: {data}, batch_size: 4}}}}
""")
    assert main(["CPU", "-p", str(tmp_path / "c.yaml"), "-m", "train", "-o", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    config = load(tmp_path / "run" / "config.yaml", Config)
    expected = note_lengths(config.trainer.init, 8)
    assert [n.partition(":")[0] for n in expected] == ["learning rate", "sparsity (gmp, group 1)"]
    assert all(note in printed.out + printed.err for note in expected)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in (r for r in rows if r["kind"] == "train"):
        assert budget.count_flops(config, row["step"]) == (row["flops"], row["dense_flops"])
    assert plan.make_plan(config).mean * rows[-1]["tokens"] == rows[-1]["flops"]
