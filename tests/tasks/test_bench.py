"""-m bench times what it says, in turns, on the config's own shapes, and writes nothing."""

import itertools
import os
import statistics

import pytest

from modelzoo.backends.local import Local
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.tasks import bench
from modelzoo.training.build import Options
from tests.support import TINY, config


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "FEWEST", 2)


def with_batch(rows: int, accum: int) -> Config:
    init = config().trainer.init.model_dump()
    fit = {"train_dataloader": {"data_dir": "nowhere", "batch_size": rows}}
    init["loop"] = {"max_steps": 1, "grad_accum_steps": accum}
    return Config.model_validate({"trainer": {"init": init, "fit": fit}})


def test_the_table_names_every_pattern_that_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wide = {**TINY, "hidden_size": 64, "filter_size": 128}
    own = {"algorithm": "rigl", "sparsity": 0.5, "block": [16, 8], "update": {"freq": 3}}
    bench.bench_patterns(config(model=wide, sparsity=own), Options(target="CPU"), "x.yaml")
    out = capsys.readouterr().out
    rows = {line[:22].strip(): line for line in out.splitlines() if "MiB" in line}
    patterns = ["block: [32, 1]", "block: [32, 32]", "shared_inputs: 4", "block: [16, 8]"]
    assert list(rows) == ["dense", "unstructured", "storage: packed", *patterns]
    assert "left out   block: [64, 64]: trainer.init.sparsity: no live weight is left in model." in out
    assert "4 x 12 tokens, layers: 2, sparsity 0.5" in out and "\ndone " in out
    assert os.listdir(tmp_path) == []


def test_dead_blocks_take_no_memory(capsys):
    wide = {**TINY, "hidden_size": 64, "filter_size": 128}
    made = {n: bench._run(config(model=wide), _choice(), g) for n, g in (("dense", ()), ("blocks", _blocks()))}
    dead = 2 * 8 * 64**2 * 3 // 4  # two layers of 4 d^2 + 2 d (2 d) weights in matrices, 75 % of them off
    assert bench._bytes(made["dense"]) - bench._bytes(made["blocks"]) == (4 + 4 + 8) * dead


def _choice():
    from modelzoo.backends.select import select_device

    return select_device("CPU", config().trainer.init)


def _blocks():
    return config(sparsity={"sparsity": 0.75, "block": [32, 32], "storage": "packed"}).trainer.init.sparsity


def test_each_contestant_has_a_backend_of_its_own(monkeypatch, capsys):
    """A GPU's replays the steps of one run: were it to serve them all by turns, none would be captured."""
    seen = {}
    plain = Local.train_step
    monkeypatch.setattr(
        Local,
        "train_step",
        lambda self, r, b, p: (seen.setdefault(id(self), set()).add(id(r)), plain(self, r, b, p))[1],
    )
    bench.bench_patterns(config(model={**TINY, "hidden_size": 64, "filter_size": 128}), Options(target="CPU"), "x.yaml")
    assert len(seen) == 6 and all(len(runs) == 1 for runs in seen.values())


@pytest.mark.parametrize("warm", [1, 3])
def test_steps_before_are_not_timed(warm, capsys):
    calls = []
    times = bench._rounds({"a": lambda: calls.append(0)}, warm)
    assert len(calls) == warm + len(times["a"])


def test_contestants_take_turns(capsys):
    calls = []
    times = bench._rounds({name: lambda name=name: calls.append(name) for name in "abc"})
    assert {n: len(t) for n, t in times.items()} == {"a": 2, "b": 2, "c": 2}
    assert "".join(calls) == "abc" + "abc" + "bca"  # warm-up, then a rotating start


def test_ratios_are_taken_round_by_round():
    times = {"dense": [2.0, 4.0, 9.0, 1.0], "x": [1.0, 1.0, 3.0, 2.0]}
    low, middle, high = bench._ratios(times, "x")
    assert middle == statistics.median([2.0, 4.0, 3.0, 0.5]) and low < middle < high
    advice = bench._advice({"dense": [2.0] * 4, "block: [32, 32]": [1.0] * 4, "y": [1.9] * 4}, "x.yaml")
    assert "fastest: block: [32, 32], 2.00" in advice[0] and "-p x.yaml -m train" in advice[1]
    assert bench._advice({"dense": [1.0] * 4, "y": [1.1] * 4}, "x.yaml")[0].startswith("done       no pattern")
    assert bench._advice({"dense": [1.0] * 4}, "x.yaml") == [
        "done       no pattern could be timed here: each is left out, for the reason in its line"
    ]


@pytest.mark.parametrize("rows,accum,shape,parts", [
    (4, 1, (4, 12), 1), (4, 2, (4, 12), 2), (1000, 1, (341, 12), 1), (1000, 50, (20, 12), 1),
])  # fmt: skip
def test_the_batch_has_the_configs_shape_up_to_a_size(rows, accum, shape, parts):
    batch, found = bench._batch(with_batch(rows, accum))
    assert found == parts and all(tuple(x.shape) == shape for x in batch.values())
    assert int(batch["input_ids"].max()) < TINY["vocab_size"]
    assert (batch["labels"][:, :-1] == batch["input_ids"][:, 1:]).all()


def test_a_large_model_is_measured_on_its_first_layers(monkeypatch):
    whole = config(model={**TINY, "num_hidden_layers": 9})
    assert bench._cut(whole)[1] == "layers: 9"
    monkeypatch.setattr(bench, "WEIGHTS", 10_000)
    cut, text = bench._cut(whole)
    layers = cut.trainer.init.model.num_hidden_layers
    assert 1 <= layers < 9 and text == f"layers: {layers} of 9"


@pytest.mark.parametrize("sparsity,level", [
    (None, 0.75), (0.5, 0.5), (0.0, 0.75),
    ({"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.8, "end": 40}, "update": {"freq": 5}}, 0.8),
])  # fmt: skip
def test_the_level_is_the_configs_at_the_end(sparsity, level):
    assert bench._level(config(sparsity=sparsity) if sparsity is not None else config())[0] == level


def test_a_config_that_cannot_train_is_refused():
    with pytest.raises(UserError, match="optimizer: missing"):
        bench.bench_patterns(config(optimizer=None), Options(target="CPU"), "x.yaml")


def test_every_contestant_takes_a_step(monkeypatch, capsys):
    """The model that is timed trains: its loss on one batch falls."""
    losses = []
    plain = Local.train_step
    monkeypatch.setattr(Local, "train_step", lambda self, r, b, p: losses.append((id(r), plain(self, r, b, p).loss)))
    bench.bench_patterns(config(model={**TINY, "hidden_size": 64, "filter_size": 128}), Options(target="CPU"), "x.yaml")
    runs = {}
    for run, loss in losses:
        runs.setdefault(run, []).append(loss)
    assert len(runs) == 6 and all(b < a for steps in runs.values() for a, b in itertools.pairwise(steps))
