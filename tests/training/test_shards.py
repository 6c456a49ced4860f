"""Each rank holds a share of weights, gradients and moments: the same run as with replicas, to rounding."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modelzoo import cli
from modelzoo.backends import sharding
from modelzoo.backends.local import Local
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.gpt import GPTModel
from modelzoo.planning import devices_text
from modelzoo.planning.memory import count_memory
from modelzoo.planning.plan import find_layout
from tests import ranks
from tests.ranks import Launch, run_ranks, words
from tests.support import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with torch in it")

STEPS = 24
SHARED = {  # one norm a layer, and one head of keys and values for all heads
    "name": "gptj", "rotary_dim": 4, "embd_pdrop": 0.0, "attention_module": "multiquery_attention",
    "extra_attention_params": {"num_kv_groups": 1},
}  # fmt: skip
KINDS = {
    "dense": {},
    "static": {"sparsity": {"sparsity": 0.75}, "model": {**TINY, **SHARED, "share_embedding_weights": False},
               "precision": {"enabled": False, "max_gradient_norm": 0.1}},
    "set": {"sparsity": {"algorithm": "set", "sparsity": 0.5, "update": {"freq": 5}},
            "backend": {"activation_checkpointing": "attention"}},
    "rigl": {"sparsity": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 7}},
             "loop": {"max_steps": STEPS, "eval_frequency": 8, "grad_accum_steps": 4}},
    "gmp": {"sparsity": {"algorithm": "gmp", "sparsity": {"type": "cubic", "init": 0.0, "final": 0.75, "end": 18},
                         "update": {"freq": 6}, "block": [4, 4], "permute_inputs": "updates"},
            "backend": {"activation_checkpointing": "layer"}},
    "momentum": {"sparsity": {"algorithm": "rigl", "sparsity": 0.5, "block": [4, 4], "update": {"freq": 6}},
                 "optimizer": {"SGD": {"momentum": 0.9, "lr": 1e-2}}},
    "packed": {"sparsity": {"sparsity": 0.75, "block": [4, 4], "storage": "packed"}},
    "packed_rigl": {"sparsity": {"algorithm": "rigl", "sparsity": 0.5, "block": [4, 4], "storage": "packed",
                                 "update": {"freq": 6}}},
    "mest": {"sparsity": {"algorithm": "mest", "sparsity": 0.5, "update": {"freq": 6}, "gamma": 1.0,
                          "regrow_warmup": 8}},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return ranks.write_data(tmp_path_factory.mktemp("data"), 19)


def write_config(data: Path, path: Path, **init) -> Path:
    return ranks.write_config(
        data,
        path,
        {"parallel": "shard"},
        init,
        model=TINY,
        optimizer={"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 1e-3}},
        loop={"max_steps": STEPS, "eval_frequency": 8},
    )


def read_checkpoint(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    found = {}
    files = (folder / f"checkpoints/step_{step}").glob("*.safetensors")
    for stem in sorted(f.stem for f in files):
        for name, x in safetensors.torch.load_file(folder / f"checkpoints/step_{step}/{stem}.safetensors").items():
            found[f"{stem}/{name}"] = x
    return found


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    assert_same_weights(a, b)
    for one, two in zip(read_log(a), read_log(b), strict=True):
        assert one.keys() == two.keys()
        assert all(one[k] == pytest.approx(two[k], rel=1e-5) for k in one if k != "kind"), (one, two)


def assert_same_weights(a: Path, b: Path, step: int = STEPS) -> None:
    ours, theirs = read_checkpoint(a, step), read_checkpoint(b, step)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        y = theirs[name]
        assert x.shape == y.shape and x.dtype == y.dtype, name
        if x.is_floating_point():
            assert torch.allclose(x, y, rtol=1e-3, atol=1e-5), (name, float((x - y).abs().max()))
        else:
            assert torch.equal(x, y), name
        if (mask := theirs.get("model/" + name.split("/")[1] + "_mask")) is not None and x.shape == mask.shape:
            assert not x[mask == 0].any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_shares_train_the_run_of_one_process(kind, data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml", **KINDS[kind])
    assert cli.main([str(w) for w in words(config, tmp_path / "one")]) == 0
    launch = run_ranks(words(config, tmp_path / "two"), 2)
    assert "each of 2 processes holds a share of weights and moments" in launch.text(0) and launch.text(1) == ""
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("more", [{}, {"sparsity": {"sparsity": 0.5, "block": [4, 4], "storage": "packed"}}])
def test_products_of_16_bits_have_their_precision_without_shards(more, data, tmp_path):
    precision = {"enabled": True, "fp16_type": "bfloat16", "emulate": True}
    config = write_config(data, tmp_path / "a.yaml", precision=precision, **more)
    for count, name in ((1, "one"), (2, "two")):
        run_ranks(words(config, tmp_path / name, "--max_steps", 10), count)
    for one, two in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)


def test_rows_that_do_not_divide_among_ranks(data, tmp_path):
    """37 words and LoRA's two rows among three: one rank has no row of these."""
    config = write_config(data, tmp_path / "a.yaml", lora={"r": 2}, sparsity={"sparsity": 0.5})
    batch = ["--set", "trainer.fit.train_dataloader.batch_size=12"]
    assert cli.main([str(w) for w in words(config, tmp_path / "one", *batch)]) == 0
    run_ranks(words(config, tmp_path / "three", *batch), 3)
    assert_same_run(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("kind", ["rigl", "packed_rigl"])
def test_a_run_resumes_with_either_kind_and_any_number(kind, data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml", **KINDS[kind])
    assert cli.main([str(w) for w in words(config, tmp_path / "whole")]) == 0
    replicas = ["--set", "trainer.init.backend.parallel=replicate", "--set", "trainer.init.backend.reduction=fast"]
    for stop, count, more in ((5, 2, []), (9, 2, replicas), (13, 1, []), (19, 4, []), (STEPS, 2, [])):
        run_ranks(words(config, tmp_path / "part", "--max_steps", stop, *more), count)
    assert_same_weights(tmp_path / "part", tmp_path / "whole")


def test_a_rank_holds_its_share_alone(data, tmp_path, monkeypatch):
    begin, step = sharding.ModelShares.__init__, sharding.clip_norm

    def record(self, backend, model, sparsity):
        begin(self, backend, model, sparsity)
        whole = sum(self.shape(p).numel() for p in self.parameters.values())
        ours = sum(p.to_local().untyped_storage().nbytes() // 4 for p in model.parameters())
        dead = sum(p.part.numel() for p in sparsity.parameters)
        (tmp_path / f"held{self.ranks.rank}").write_text(json.dumps([whole, ours, dead]))

    def check(ranks, grads, limit):
        (tmp_path / f"grads{ranks.rank}").write_text(json.dumps(sum(g.numel() for g in grads)))
        return step(ranks, grads, limit)

    monkeypatch.setattr(sharding.ModelShares, "__init__", record)
    monkeypatch.setattr(sharding, "clip_norm", check)
    config = write_config(data, tmp_path / "a.yaml", **KINDS["static"])
    run_ranks(words(config, tmp_path / "run", "--max_steps", 2), 2)
    for rank in range(2):
        whole, ours, masked = json.loads((tmp_path / f"held{rank}").read_text())
        assert ours < 0.6 * whole and masked < 0.5 * whole  # 37 words are padded to 38
        assert json.loads((tmp_path / f"grads{rank}").read_text()) < 0.55 * whole


class Traffic(TorchDispatchMode):
    """Counts the bytes that one of `ranks` sends where they gather weights and sum gradients, each in a ring."""

    def __init__(self, ranks: int):
        super().__init__()
        self.ranks, self.sent = ranks, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if func.namespace == "c10d" and "allreduce" not in name:  # that is of single values: flags, the loss, the norm
            whole = args["reduce_scatter" in name]  # it goes in, or comes out
            assert "_base_" in name, name
            self.sent += whole.numel() * whole.element_size() * (self.ranks - 1) // self.ranks
        return func(*args, **(kwargs or {}))


EVEN = {**TINY, "vocab_size": 40}  # every tensor's rows divide by two: nothing is padded
PLANNED = {
    "masked": {"sparsity": {"sparsity": 0.75}},
    "twice": {"loop": {"max_steps": 2, "grad_accum_steps": 4}, "optimizer": {"SGD": {"momentum": 0.9, "lr": 1e-2}}},
    "packed": {"sparsity": {"sparsity": 0.75, "block": [4, 4], "storage": "packed"}},
    "rigl": {"sparsity": {"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 9}}},
    "packed_set": {"sparsity": {"algorithm": "set", "sparsity": 0.5, "block": [4, 4], "storage": "packed",
                                "update": {"freq": 9}}},
    "bf16": {"precision": {"fp16_type": "bfloat16", "emulate": True}, "sparsity": {"sparsity": 0.5}},
    "lora": {"lora": {"r": 2}, "sparsity": {"sparsity": 0.5}},
    "recomputed": {"backend": {"activation_checkpointing": "layer"}, "model": {**EVEN, "num_hidden_layers": 3}},
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANNED)
def test_the_plan_s_bytes_are_those_that_ranks_hold_and_send(kind, data, tmp_path, monkeypatch):
    train, clip, found = Local.train_step, sharding.clip_norm, {}

    def measure(self, run, *arguments):
        with Traffic(self.ranks.size) as traffic:
            step = train(self, run, *arguments)
        sums = {"sent": traffic.sent, "weights": sum(map(count_bytes, run.parameters.values()))}
        state = [(k, x) for of in run.optimizer.state.values() for k, x in of.items() if torch.is_tensor(x) and x.dim()]
        sums["optimizer"] = sum(count_bytes(x) for k, x in state if k != "born")
        masks = [*run.sparsity.explored.bits.values(), *(x for k, x in state if k == "born")]
        for p in run.sparsity.parameters:
            masks += p.layout.parts if isinstance(p, sharding.SharedPacked) else (p.part, p.keep)
        sums["masks"] = sum(map(count_bytes, masks))
        (tmp_path / f"measured{self.ranks.rank}").write_text(json.dumps({**found, **sums}))
        return step

    def look(ranks, grads, limit):
        found["gradients"] = sum(map(count_bytes, grads))
        return clip(ranks, grads, limit)

    def count_bytes(x):
        return x.numel() * x.element_size()

    monkeypatch.setattr(Local, "train_step", measure)
    monkeypatch.setattr(sharding, "clip_norm", look)
    path = write_config(data, tmp_path / "a.yaml", **{"model": EVEN, **PLANNED[kind]})
    run_ranks(words(path, tmp_path / "run", "--max_steps", 2), 2)
    made = load(str(path), Config)
    layout = find_layout(made, "CPU", 2, sharded=True)
    planned = {**count_memory(made, 12, layout), "sent": devices_text.count_shards(made, layout)}
    for rank in range(2):
        measured = json.loads((tmp_path / f"measured{rank}").read_text())
        assert measured == {name: planned[name] for name in measured}


def test_a_killed_rank_ends_the_other_with_one_line(data, tmp_path):
    config = write_config(data, tmp_path / "a.yaml", loop={"max_steps": 100000}, checkpoint={"steps": 5})
    launch = Launch(words(config, tmp_path / "run"), 2)
    while not list((tmp_path / "run/checkpoints").glob("step_*")):
        assert launch.ranks[0].poll() is None, launch.text(0)
        time.sleep(0.01)
    launch.ranks[1].send_signal(signal.SIGKILL)
    assert launch.wait() == [75, -signal.SIGKILL]
    assert "error: rank 1 of 2: gone, or no answer" in launch.text(0)


@pytest.mark.parametrize("every", [None, 1])
def test_a_loss_that_is_not_finite_leaves_the_last_good_weights(every, data, tmp_path, monkeypatch):
    forward = GPTModel.forward

    def spoil(self, batch, denominator):
        self.calls = getattr(self, "calls", 0) + int(self.training)
        return forward(self, batch, denominator) * (float("nan") if self.calls == 3 else 1.0)

    config = write_config(data, tmp_path / "a.yaml", checkpoint={"steps": every})
    run_ranks(words(config, tmp_path / "whole", "--max_steps", 2), 2)
    monkeypatch.setattr(GPTModel, "forward", spoil)
    launch = Launch(words(config, tmp_path / "run"), 2)
    assert launch.wait() == [2, 2]
    assert "step 3: loss nan, gradient norm nan: not finite" in launch.text(0) and launch.text(1) == ""
    assert_same_weights(tmp_path / "run", tmp_path / "whole", 2)


@pytest.mark.parametrize("init,line", [
    ({"sparsity": {**KINDS["gmp"]["sparsity"], "block": [4, 4], "storage": "packed"}}, "sparsity.0.storage: packed"),
    ({"backend": {"reduction": "exact"}}, "trainer.init.backend.reduction: exact"),
    ({"soft_prompt": {"tokens": 3}}, "trainer.init.soft_prompt: "),
    ({"backend": {"torch_compile": True}}, "trainer.init.backend.torch_compile: "),
])  # fmt: skip
def test_what_cannot_be_shared_out_is_refused_in_one_line(init, line, data, tmp_path):
    launch = Launch(words(write_config(data, tmp_path / "a.yaml", **init), tmp_path / "run"), 2)
    assert launch.wait() == [2, 2]
    errors = [x for x in launch.text(0).splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and line in errors[0]
    assert launch.text(1) == "" and not (tmp_path / "run/launches.jsonl").exists()
