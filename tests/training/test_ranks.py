"""Several processes train one run: the same bits as one process, whatever becomes of one of them."""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo import cli
from modelzoo.config.errors import UserError
from modelzoo.models.gpt import GPTModel
from modelzoo.processes import _first_host, find_world
from tests import ranks
from tests.ranks import Launch, run_ranks, words
from tests.support import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with torch in it")

STEPS = 8
KINDS = {
    "dense": {},
    "static": {"sparsity": {"sparsity": 0.75}},
    "set": {"sparsity": {"algorithm": "set", "sparsity": 0.5, "update": {"freq": 2}}},
    "rigl": {"sparsity": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3}}},
    "gmp": {
        "sparsity": {
            "algorithm": "gmp", "sparsity": {"type": "cubic", "init": 0.0, "final": 0.75, "end": 6}, "block": [4, 4],
            "permute_inputs": "updates",
        }
    },
    "packed": {"sparsity": {"sparsity": 0.75, "block": [4, 4], "storage": "packed"}},
    "packed_rigl": {
        "sparsity": {
            "algorithm": "rigl", "sparsity": 0.5, "block": [4, 4], "storage": "packed", "update": {"freq": 3},
        }
    },
    "mest": {
        "sparsity": {
            "algorithm": "mest", "sparsity": 0.5, "block": [2, 2], "storage": "packed", "update": {"freq": 3},
            "gamma": 1.0, "regrow_warmup": 4,
        },
        "precision": {"enabled": False, "max_gradient_norm": 0.1},
    },
    "chtss": {
        "sparsity": {
            "algorithm": "chtss", "sparsity": {"type": "sigmoid", "init": 0.5, "final": 0.75, "end": 6},
            "update": {"freq": 2}, "regrow_warmup": 3,
        }
    },
    "sr_ste": {"sparsity": {"algorithm": "sr_ste", "nm": [2, 4]}},
    "clipped": {"precision": {"enabled": False, "max_gradient_norm": 0.1}},
    "accumulated": {"loop": {"max_steps": STEPS, "eval_frequency": 4, "grad_accum_steps": 8}},
    "by_value": {"precision": {"enabled": False, "max_gradient_value": 0.001}},
    "lora": {"lora": {"r": 2}},
    "recomputed": {"backend": {"activation_checkpointing": "layer"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return ranks.write_data(tmp_path_factory.mktemp("data"), 23)


def write_config(data: Path, path: Path, **init) -> Path:
    """A config of batches of 16 with dropout; `init` replaces or adds sections."""
    return ranks.write_config(
        data,
        path,
        {"reduction": "exact"},
        init,
        model={**TINY, "dropout_rate": 0.1},
        optimizer={"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 1e-2}},
        loop={"max_steps": STEPS, "eval_frequency": 4},
        checkpoint={"steps": 4},
    )


def read_run(folder: Path, step: int = STEPS) -> dict[str, bytes]:
    """The bytes that must be the same: log, weights and moments."""
    stems = ("model", "optimizer", "explored", "orders")
    names = ["metrics.jsonl", *(f"checkpoints/step_{step}/{n}.safetensors" for n in stems)]
    return {n: (folder / n).read_bytes() for n in names if (folder / n).exists()}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_compute_the_bits_of_one_process(kind, data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml", **KINDS[kind])
    assert cli.main([str(w) for w in words(config, tmp_path / "one")]) == 0
    expected = read_run(tmp_path / "one")
    moves = any(k in kind for k in ("set", "rigl", "gmp", "mest", "chtss", "sr_ste"))
    assert len(expected) == 3 + moves + (kind == "gmp")
    for count in (2, 4) if kind in ("rigl", "dense") else (2,):
        launch = run_ranks(words(config, tmp_path / f"of{count}"), count)
        assert read_run(tmp_path / f"of{count}") == expected
        assert all(launch.text(r) == "" for r in range(1, count))  # rank 0 talks
        assert f"{count} x CPU" in launch.text(0) and f"step {STEPS}/{STEPS}" in launch.text(0)
        (line,) = map(json.loads, (tmp_path / f"of{count}/launches.jsonl").read_text().splitlines())
        assert line["processes"] == count


def test_a_run_changes_its_ranks_wherever_it_resumes(data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml", **KINDS["rigl"])
    run_ranks(words(config, tmp_path / "whole"), 2)
    for stop, count in ((3, 4), (5, 1), (7, 2), (STEPS, 1)):
        run_ranks(words(config, tmp_path / "part", "--max_steps", stop), count)
    ours, theirs = read_run(tmp_path / "part"), read_run(tmp_path / "whole")
    del ours["metrics.jsonl"], theirs["metrics.jsonl"]  # a run is validated at its end
    assert ours == theirs
    assert [json.loads(x)["processes"] for x in (tmp_path / "part/launches.jsonl").open()] == [4, 1, 2, 1]


def test_one_process_goes_on_with_the_sums_that_ranks_had(data, tmp_path):
    """Nothing in the config asks for exact sums: the ranks' default is on record in the checkpoint."""
    config = write_config(data, tmp_path / "a.yaml", backend={"reduction": None})
    run_ranks(words(config, tmp_path / "whole"), 2)
    run_ranks(words(config, tmp_path / "part", "--max_steps", 4), 2)
    assert cli.main([str(w) for w in words(config, tmp_path / "part")]) == 0
    assert read_run(tmp_path / "part") == read_run(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["static", "rigl", "packed_rigl", "accumulated"])
def test_fast_sums_are_equal_to_rounding(kind, data, tmp_path):
    without = {"model": TINY}  # dropout's draws are the ranks' own here
    config = write_config(data, tmp_path / "a.yaml", **{**KINDS[kind], **without, "backend": {"reduction": "fast"}})
    assert cli.main([str(w) for w in words(config, tmp_path / "one")]) == 0
    run_ranks(words(config, tmp_path / "two"), 2)
    logs = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")
    ]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["kind"] == b["kind"]
    one, two = (
        safetensors.torch.load_file(tmp_path / n / f"checkpoints/step_{STEPS}/model.safetensors")
        for n in ("one", "two")
    )
    assert all(torch.equal(x, two[n]) for n, x in one.items() if n.endswith("_mask"))
    assert all(torch.allclose(x, two[n], atol=1e-4) for n, x in one.items() if not n.endswith("_mask"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_rank_ends_the_others_and_the_run_goes_on_with_another_number(seed, data, tmp_path):
    draw = random.Random(seed)
    steps = 30
    long = {"loop": {"max_steps": steps, "eval_frequency": 10}, "checkpoint": {"steps": 5}}
    config = write_config(data, tmp_path / "a.yaml", **KINDS["set"], **long)
    run_ranks(words(config, tmp_path / "whole"), 2)
    victim = draw.randrange(2)
    launch = Launch(words(config, tmp_path / "part"), 2)
    checkpoints = tmp_path / "part/checkpoints"
    while not list(checkpoints.glob("step_*")) and launch.ranks[victim].poll() is None:
        time.sleep(0.01)
    time.sleep(draw.random() * 0.3)
    launch.ranks[victim].send_signal(signal.SIGKILL)
    codes = launch.wait()
    if codes[victim] == -signal.SIGKILL and codes[1 - victim]:
        assert codes[1 - victim] == 75
        assert f"rank {victim} of 2: gone, or no answer" in launch.text(1 - victim)
    run_ranks(words(config, tmp_path / "part"), (1, 2, 4)[seed])
    assert read_run(tmp_path / "part", steps) == read_run(tmp_path / "whole", steps)


def test_a_signal_to_one_rank_ends_all_of_them_with_a_checkpoint(data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml", loop={"max_steps": 100000}, checkpoint={"steps": 5})
    launch = Launch(words(config, tmp_path / "run"), 2)
    while not list((tmp_path / "run/checkpoints").glob("step_*")):
        assert launch.ranks[0].poll() is None, launch.text(0)
        time.sleep(0.01)
    launch.ranks[1].send_signal(signal.SIGTERM)
    assert launch.wait() == [143, 143]
    assert "it resumes exactly at step" in launch.text(0)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_the_last_good_weights(data, tmp_path, monkeypatch):
    forward = GPTModel.forward

    def spoil(self, batch, denominator):
        loss, step = forward(self, batch, denominator), int(self.training)
        return loss * float("nan") if os.environ.get("RANK") == "1" and self.calls >= 12 * step else loss

    def count(self, *inputs):
        self.calls = getattr(self, "calls", 0) + 1
        return spoil(self, *inputs)

    config = write_config(data, tmp_path / "a.yaml")
    run_ranks(words(config, tmp_path / "whole", "--max_steps", 2), 2)
    monkeypatch.setattr(GPTModel, "forward", count)
    launch = Launch(words(config, tmp_path / "run"), 2)  # four slices a step: the third step is not finite
    assert launch.wait() == [2, 2]
    assert "step 3: loss nan, gradient norm nan: not finite, so the run stops with its weights" in launch.text(0)
    assert launch.text(1) == ""
    one, two = (
        safetensors.torch.load_file(tmp_path / n / "checkpoints/step_2/model.safetensors") for n in ("run", "whole")
    )
    assert all(torch.equal(x, two[n]) for n, x in one.items())


def test_ranks_that_differ_are_refused(data, tmp_path):
    a = write_config(data, tmp_path / "a.yaml")
    b = write_config(data, tmp_path / "b.yaml", seed=8)
    launch = Launch([words(path, tmp_path / "run") for path in (a, b)], 2)
    assert launch.wait() == [2, 2]
    assert "error: the config: rank 1 differs from rank 0; start all ranks with the same command" in launch.text(0)
    assert not (tmp_path / "run/launches.jsonl").exists()


def test_a_rank_that_cannot_reach_the_data_ends_all_with_its_reason(data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml")
    elsewhere = ["--set", f"trainer.fit.train_dataloader.data_dir={tmp_path / 'nowhere'}"]
    launch = Launch([words(config, tmp_path / "run"), words(config, tmp_path / "run", *elsewhere)], 2)
    assert launch.wait() == [2, 2]
    assert "rank 1 of 2 has ended: " in launch.text(0) and "nowhere" in launch.text(0)


def test_a_port_in_use_is_one_line(data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml")
    with socket.create_server(("127.0.0.1", 0)) as server:
        launch = Launch(words(config, tmp_path / "run"), 1, port=server.getsockname()[1], size=2)
        assert launch.wait() == [2]
    (line,) = launch.text(0).splitlines()
    assert line.startswith("error: rank 0 of 2: cannot join the others at 127.0.0.1:")


@pytest.mark.parametrize("count,batch,line", [
    (3, 16, "batch_size 16 is not divisible by 3 processes; take one of 1, 2, 4, 8, 16 processes"),
    (3, 15, "go over 1, 2, 4, ... 1 processes, not 3"),
])  # fmt: skip
def test_a_batch_that_cannot_be_shared_out_is_refused(count, batch, line, data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml")
    more = ["--set", f"trainer.fit.train_dataloader.batch_size={batch}"]
    launch = Launch(words(config, tmp_path / "run", *more), count)
    assert launch.wait() == [2] * count
    errors = [x for r in range(count) for x in launch.text(r).splitlines() if x.startswith("error: ")]
    assert len(errors) >= 1 and line in errors[0]


@pytest.mark.parametrize("env,place", [
    ({}, None),
    ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, None),
    ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, (2, 4, 0, "a", 1)),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1",
      "SLURM_STEP_NODELIST": "gpu[03-07,9]", "SLURM_JOB_ID": "123"}, (1, 2, 1, "gpu03", 20123)),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    ({"SLURM_ARRAY_TASK_ID": "3"}, None),
])  # fmt: skip
def test_the_launcher_s_variables_say_which_rank_this_is(env, place):
    assert find_world(env) == place


@pytest.mark.parametrize("env", [
    {"RANK": "0"}, {"RANK": "4", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"RANK": "x", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"RANK": "-1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"},
])  # fmt: skip
def test_variables_that_contradict_are_refused(env):
    with pytest.raises(UserError, match="torchrun"):
        find_world(env)


@pytest.mark.parametrize(
    "nodes,first", [("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[08,10]", "n08"), ("x,n[1-2]", "x")]
)
def test_the_first_host_of_slurm_s_list(nodes, first):
    assert _first_host(nodes) == first
