"""`run.py prune` on whole runs: counts, zeros and bits, its layers against hooks on the model, and what it refuses."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from modelzoo.cli import main
from modelzoo.config.loading.load import dump
from modelzoo.kernels.blocks.tiling import has_blocks
from modelzoo.models.gpt import GPTModel
from modelzoo.names import layer_of, name_mask
from modelzoo.pruning import prune
from modelzoo.pruning.unfinished import Unfinished
from modelzoo.sparsity.select import live_count
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.snapshot import ORDERS, snapshot
from tests.commands import kill, start
from tests.support import batch, config, examples, make_run, tiny, write_shard

MODELS = {
    "gpt2": {},
    "llama": {
        "attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 1},
        "position_embedding_type": "rotary", "rotary_dim": 8, "norm_type": "rmsnorm",
        "nonlinearity": "swiglu", "use_ffn_bias": False, "share_embedding_weights": False,
    },
    "gptj": {"name": "gptj", "rotary_dim": 4},
}  # fmt: skip
MODEL = {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 32, "vocab_size": 37,
         "max_position_embeddings": 12, "dropout_rate": 0.0, "attention_dropout_rate": 0.0}  # fmt: skip


def run(*words: object) -> int:
    return main(["prune", *map(str, words)])


def make_folder(path: Path, data: Path, **init) -> Path:
    """A run folder with a checkpoint of weights that were drawn, not trained."""
    made = make_run(**init)
    with torch.no_grad():  # as after training: directions differ in size
        for p in made.model.parameters():
            p.mul_(torch.exp(torch.randn(p.shape[-1], generator=torch.Generator().manual_seed(p.numel()))))
    made.sparsity.mask_weights()
    made.step = 3
    saving.save(str(path / "checkpoints"), made.step, *snapshot(made, "none"), None)
    text = dump(config(**init)).replace("data_dir:\n      - nowhere", f"data_dir:\n      - {data}")
    (path / "config.yaml").write_text(text)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    found = examples(40, msl=12)
    found[::3, 1, 8:] = 0  # padding at the end
    write_shard(folder / "a.h5", found)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory, data) -> Path:
    return make_folder(tmp_path_factory.mktemp("dense"), data)


def load(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.newest(str(folder / "checkpoints"))[0])[0]["model"]


def build(model: dict, weights: dict[str, torch.Tensor]) -> GPTModel:
    made = GPTModel(tiny(**model)).eval()
    made.load_state_dict(weights, strict=False)
    return made


@pytest.mark.parametrize(
    "kind,method,flags,keys",
    [
        ("gpt2", "magnitude", ["--sparsity", "0.7"], {}),
        ("gpt2", "wanda", ["--sparsity", "0.7"], {}),
        ("gpt2", "sparsegpt", ["--nm", "2:4"], {"nm": [2, 4]}),
        ("llama", "sparsegpt", ["--sparsity", "0.7"], {}),
        ("llama", "wanda", ["--nm", "2:4"], {"nm": [2, 4]}),
        ("gptj", "wanda", ["--sparsity", "0.7"], {}),
        ("gptj", "sparsegpt", ["--sparsity", "0.5", "--block", "4,4"], {"block": [4, 4]}),
        ("gpt2", "magnitude", ["--sparsity", "0.5", "--block", "4,4", "--permute"], {"block": [4, 4]}),
        ("llama", "wanda", ["--sparsity", "0.5", "--block", "4,4", "--permute"], {"block": [4, 4]}),
        ("gpt2", "sparsegpt", ["--sparsity", "0.5", "--block", "4,4", "--permute"], {"block": [4, 4]}),
    ],
)
def test_weights_masks_and_training_on(tmp_path, data, kind, method, flags, keys):
    """Exact counts, exact zeros, bits that nothing changed; and the printed command trains under these masks."""
    model = {**MODEL, **MODELS[kind]}
    folder, out = make_folder(tmp_path / "dense", data, model=model), tmp_path / "out"
    assert run(folder, out, "--method", method, *flags, "--data", data) == 0
    before, after = load(folder), load(out)
    masks = {n: after[name_mask(n)] for n in before if name_mask(n) in after}
    assert sorted(masks) == sorted(n for n in before if n.endswith(("_layer.weight", "_glu.weight")))
    share = 0.5 if keys else 0.7
    for name, mask in masks.items():
        area = int(np.prod(keys.get("block", [1, 1])))
        assert int(mask.sum()) == live_count(mask.numel() // area, share) * area
        assert not after[name][~mask].any()
        if method != "sparsegpt":
            assert torch.equal(after[name][mask], before[name][mask])
    if "--permute" in flags:
        orders = checkpoint.load(str(out / "checkpoints/step_0"))[0]["orders"]
        assert orders.keys() == masks.keys() and len({tuple(x.tolist()) for x in orders.values()}) > 1
        assert all(has_blocks(masks[n], (4, 4), x.long()) for n, x in orders.items())
    for name in before.keys() - masks.keys():
        assert torch.equal(before[name], after[name])
    if method != "sparsegpt":  # the same function as the dense model with its weights zeroed by hand
        by_hand = {n: torch.where(masks[n], x, 0.0) if n in masks else x for n, x in before.items()}
        ids = batch()["input_ids"]
        assert torch.equal(build(model, after).model.hidden(ids), build(model, by_hand).model.hidden(ids))
    command = ["-p", out / "config.yaml", "-m", "train", "-o", out, "--checkpoint_path", out / "checkpoints/step_0"]
    command += ["--load_checkpoint_states", "model,sparsity", "--max_steps", 2]
    assert main([str(w) for w in command]) == 0
    trained = load(out)
    for name, mask in masks.items():
        assert torch.equal(trained[name_mask(name)], mask) and not torch.equal(trained[name], after[name])


def test_each_layer_reads_what_the_pruned_ones_before_give(dense, data, tmp_path):
    """Wanda's masks by hooks on the whole model, with inputs in float64."""
    assert (
        run(dense, tmp_path / "out", "--method", "wanda", "--sparsity", "0.5", "--data", data, "--batch_size", 3) == 0
    )
    before, after = load(dense), load(tmp_path / "out")
    raw = torch.from_numpy(examples(40, msl=12))
    known = torch.ones(40, 12, dtype=torch.bool)
    known[::3, 8:] = False
    for layer in range(2):  # the layers before as they were pruned, this one dense
        mixed = {n: after[n] if (layer_of(n) or 0) < layer else x for n, x in before.items()}
        model, inputs = build(MODEL, mixed), {}
        for name in (n for n in before if name_mask(n) in after and layer_of(n) == layer):
            hook = lambda _, x, name=name, inputs=inputs: inputs.update({name: x[0][known].double()})
            model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook)
        with torch.no_grad():
            model.model.hidden(raw[:, 0])
        assert len(inputs) == 6
        for name, x in inputs.items():
            scores = before[name].double().abs() * x.norm(dim=0)
            rank = scores.argsort(1, descending=True).argsort(1)
            assert torch.equal(after[name_mask(name)], rank < scores.shape[1] // 2)


def test_the_same_command_makes_the_same_bits_and_reports(dense, data, tmp_path, capsys):
    words = ["--method", "sparsegpt", "--sparsity", "0.5", "--data", data, "--samples", 8, "--seed", 4, "--compare"]
    for name in "ab":
        assert run(dense, tmp_path / name, *words, "--validate", data) == 0
    a, b = load(tmp_path / "a"), load(tmp_path / "b")
    assert all(torch.equal(a[n], b[n]) for n in a)
    report = json.loads((tmp_path / "a/pruning.json").read_text())
    assert report["examples"] == 8 and report["seed"] == 4 and len(report["weights"]) == 12
    assert all(0 < w["error"] < w["of_magnitude"] < 1 for w in report["weights"])
    loss = report["validation"]
    labels, mask = (torch.from_numpy(examples(40, msl=12))[:, i] for i in (2, 1))
    mask[::3, 8:] = 0
    for name, weights in (("before", load(dense)), ("sparsegpt", a)):
        with torch.no_grad():
            model = build(MODEL, weights).model
            logits = model.logits(model.hidden(torch.from_numpy(examples(40, msl=12))[:, 0]))
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().long(), reduction="none")
        assert loss[name]["loss"] == pytest.approx(float((each * mask.flatten()).sum() / mask.sum()), rel=1e-5)
    printed, notes = capsys.readouterr()
    assert f"note       {data} is calibrated on and validated on, so the losses" in notes
    assert "of 4,096 weights in 12 matrices by sparsegpt, with 8 examples" in printed
    assert "validation by magnitude: loss" in printed and "--load_checkpoint_states model,sparsity" in printed


def test_a_config_says_what_to_prune_to(dense, data, tmp_path, capsys):
    sparse = "extends: {}\ntrainer: {{init: {{sparsity: {{algorithm: rigl, sparsity: 0.75, update: {{freq: 2}}}}}}}}\n"
    (tmp_path / "s.yaml").write_text(sparse.format(dense / "config.yaml"))
    words = [dense, tmp_path / "out", "--method", "wanda", "--data", data, "-p", tmp_path / "s.yaml"]
    assert run(*words, "--sparsity", "0.5") == 2
    assert "s.yaml: has a sparsity section" in capsys.readouterr().err
    assert run(*words) == 0
    assert "algorithm: rigl" in (tmp_path / "out/config.yaml").read_text()
    assert "init_method: from_zeros" in (tmp_path / "out/config.yaml").read_text()
    assert f"model_dir: {tmp_path / 'out'}" in (tmp_path / "out/config.yaml").read_text()
    masks = [x for n, x in load(tmp_path / "out").items() if n.endswith("_mask")]
    assert {float(x.float().mean()) for x in masks} == {0.25}
    capsys.readouterr()
    assert run(tmp_path / "out", tmp_path / "more", "--method", "magnitude", "--sparsity", "0.9") == 0
    assert "is sparse already: 3,072 of 4,096 weights under its 12 masks are off" in capsys.readouterr().err
    again = [x for n, x in load(tmp_path / "more").items() if n.endswith("_mask")]
    assert all(not bool((b & ~a).any()) for a, b in zip(masks, again, strict=True))  # what was off stays off


def test_bad_input_is_one_line(dense, data, tmp_path, capsys):
    adapted, huge = make_folder(tmp_path / "lora", data, lora={"r": 2}), tmp_path / "huge"
    files, known = checkpoint.load(str(dense / "checkpoints/step_3"))
    files["model"] = {n: x * 1e30 if "norm1.weight" in n else x for n, x in files["model"].items()}
    saving.save(str(huge / "checkpoints"), 3, files, known, None)
    (huge / "config.yaml").write_text((dense / "config.yaml").read_text())
    holds = tmp_path / "holds"
    holds.mkdir()
    (holds / "x").write_text("")
    s50 = ["--sparsity", "0.5"]
    for path, out, words, message in (
        (dense, "out", ["--method", "wanda", *s50], "--data: missing; wanda reads calibration text"),
        (dense, "out", ["--method", "wanda", *s50, "--data", tmp_path / "no"], f"{tmp_path / 'no'}"),
        (dense, "out", ["--method", "magnitude", "--sparsity", "1.2"], "--sparsity: must be below 1, got 1.2"),
        (dense, "out", ["--method", "magnitude"], "--sparsity: missing"),
        (dense, "out", ["--method", "magnitude", *s50, "--block", "5,5"], "5 does not divide"),
        (dense, "out", ["--method", "magnitude", *s50, "--block", "5"], "--block: takes ROWS,COLUMNS"),
        (dense, "out", ["--method", "magnitude", "--nm", "4:2"], "--nm: N must be below M"),
        (dense, "out", ["--method", "magnitude", "--nm", "2:4", "--block", "4,4"], "not allowed with"),
        (dense, "out", ["--method", "magnitude", "--sparsity", "0"], "nothing to prune"),
        (dense, "out", ["--method", "magnitude", *s50, "--permute"], "permute_inputs orders the inputs of blocks"),
        (dense, "out", ["--method", "magnitude", "--sparsity", "0.9999"], "no live weight would be left in"),
        (dense, "out", ["--method", "magnitude", *s50, "--compare"], "--compare: sets magnitude next to another"),
        (dense, "holds", ["--method", "magnitude", *s50], "exists, and is not an empty folder"),
        (tmp_path / "no", "out", ["--method", "magnitude", *s50], "no such checkpoint"),
        (huge, "out", ["--method", "wanda", *s50, "--data", data], "inputs on the calibration text are not finite"),
        (adapted, "out", ["--method", "magnitude", *s50], "has LoRA adapters"),
    ):
        assert run(path, tmp_path / out, *words) == 2, words
        *before, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and message in error and not (tmp_path / "out").exists(), error
        assert not before or path == huge  # which is found on the way


def test_killed_in_the_first_layer_it_leaves_nothing(dense, data, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        words = ["--method", "wanda", "--sparsity", "0.5", "--batch_size", 1, "--samples", 1000, "--data", *[data] * 25]
        process = start(["prune", dense, tmp_path / "place/out", *words], file)
        while b"layer 1/2" not in log.read_bytes() and process.poll() is None:
            time.sleep(0.005)
        assert kill(process) == -signal.SIGKILL
    assert b"layer 1/2" in log.read_bytes() and os.listdir(tmp_path / "place") == ["out.unfinished"]
    assert os.listdir(tmp_path / "place/out.unfinished") == [".lock"]


@pytest.mark.parametrize(
    "method,damaged", [("wanda", False), ("sparsegpt", False), ("wanda", True), ("ordered", False)]
)
def test_cut_short_it_goes_on_behind_the_last_layer(method, damaged, dense, data, tmp_path, monkeypatch, capsys):
    """To the bits and figures of a command that nothing cut short; other commands do not mix with it."""
    pattern = ["sparsegpt", "--block", "4,4", "--permute"] if method == "ordered" else [method]
    words, out = ["--method", *pattern, "--sparsity", "0.5", "--data", data], tmp_path / "out"
    assert run(dense, tmp_path / "whole", *words) == 0
    save, prune_linear, pruned = Unfinished.save, prune._prune_linear, []

    def fail(self, number, *rest):
        if number == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
        save(self, number, *rest)

    def count(plan, *rest):
        pruned.append(plan.name)
        return prune_linear(plan, *rest)

    with monkeypatch.context() as m:
        m.setattr(Unfinished, "save", fail)
        assert run(dense, out, *words) == 2 and "No space left" in capsys.readouterr().err
    left = tmp_path / "out.unfinished"
    assert sorted(os.listdir(left)) == [".lock", "layer_0.json", "layer_0.safetensors", "request.json"]
    assert run(dense, out, *words, "--seed", 5) == 2
    assert "(other seed); repeat its command" in capsys.readouterr().err
    if damaged:
        content = bytearray((left / "layer_0.safetensors").read_bytes())
        content[-1] ^= 1
        (left / "layer_0.safetensors").write_bytes(content)
    monkeypatch.setattr(prune, "_prune_linear", count)
    assert run(dense, out, *words) == 0
    printed = capsys.readouterr().err
    assert "out.unfinished: 1 layer pruned already" in printed and ("layer 1 is pruned again" in printed) == damaged
    assert len(pruned) == (12 if damaged else 6) and not left.exists()
    a, b = load(tmp_path / "whole"), load(out)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    orders = [
        checkpoint.load(checkpoint.newest(str(tmp_path / n / "checkpoints"))[0])[0].get(ORDERS)
        for n in ("whole", "out")
    ]
    assert (orders[0] is not None) == (method == "ordered") and str(orders[0]) == str(orders[1])
    reports = [json.loads((tmp_path / n / "pruning.json").read_text()) for n in ("whole", "out")]
    assert reports[0]["weights"] == reports[1]["weights"]
