"""`import modelzoo`: few names, no torch before they are used; run.py's own runs; scores as lm-eval has them."""

import json
import logging
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import modelzoo
from modelzoo import version
from modelzoo.backends.local import Local
from modelzoo.cli import main
from modelzoo.config.errors import UserError
from tests.evaluation_world import words  # noqa: F401 - a fixture
from tests.generation.conftest import make  # noqa: F401 - a fixture
from tests.support import TINY, examples, write_manifest, write_shard

REPO = Path(__file__).resolve().parents[2]


def test_names_are_there_and_cost_nothing_before_they_are_used():
    code = (
        "import sys, time; begin = time.perf_counter(); import modelzoo; took = time.perf_counter() - begin\n"
        "names = [n for n in dir(modelzoo) if n in modelzoo.__all__]\n"
        "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'argparse', 'modelzoo.version') if m in sys.modules]\n"
        "print(took, names == sorted(modelzoo.__all__), heavy, modelzoo.__version__, 'torch' in sys.modules)\n"
        "modelzoo.train; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    took, rest = done.stdout.split(" ", 1)
    assert (
        float(took) < 1 and rest == f"True [] {version.VERSION} False\nFalse\n"
    )  # a tenth of a second, if undisturbed


def test_every_name_is_what_it_says():
    assert modelzoo.UserError is UserError and modelzoo.__version__ == version.VERSION
    for name in modelzoo.__all__:
        assert getattr(modelzoo, name) is not None
    with pytest.raises(AttributeError, match="'modelzoo' has no attribute 'lode'"):
        modelzoo.lode  # noqa: B018


# --- train


@pytest.fixture
def world(tmp_path) -> Path:
    write_shard(tmp_path / "data" / "a.h5", examples(24))
    write_manifest(tmp_path / "data", vocab_size=37)
    init = {
        "seed": 3, "model": TINY, "optimizer": {"AdamW": {"lr": 0.01}}, "precision": {"enabled": False},
        "sparsity": {"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 2}}, "loop": {"max_steps": 4},
        "checkpoint": {"steps": 2}, "logging": {"log_level": "error"},
    }  # fmt: skip
    fit = {"train_dataloader": {"data_dir": str(tmp_path / "data"), "batch_size": 4, "shuffle": True}}
    (tmp_path / "c.yaml").write_text(json.dumps({"trainer": {"init": init, "fit": fit}}))
    return tmp_path


def tensors(run) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in sorted(Path(run, "checkpoints", "step_4").glob("*.safetensors"))}
    assert found
    return found


def losses(run) -> list[float]:
    return [r["loss"] for r in map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines()) if "loss" in r]


def test_a_run_is_run_pys_and_resumes_by_the_same_rule(world, capsys):
    assert main(["-p", str(world / "c.yaml"), "-m", "train", "-o", str(world / "command")]) == 0
    whole = modelzoo.train(world / "c.yaml", out=world / "python")
    assert whole == str(world / "python")
    mapping = json.loads((world / "c.yaml").read_text())
    parts = modelzoo.train(mapping, {"trainer.init.loop.max_steps": 2}, world / "parts")
    assert modelzoo.train(mapping, ["trainer.init.loop.max_steps=4"], world / "parts") == parts
    assert tensors(whole) == tensors(world / "command") == tensors(parts)
    assert len(losses(whole)) == 4 and losses(whole) == losses(world / "command") == losses(parts)


def test_a_run_goes_in_another_thread_too(world):
    found = []
    thread = threading.Thread(target=lambda: found.append(modelzoo.train(world / "c.yaml", out=world / "run")))
    thread.start()
    thread.join()
    assert tensors(found[0])


def test_a_run_leaves_the_callers_settings_as_they_are(world):
    handler, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(handler)
    before = root.handlers[:], root.level, torch.get_num_threads(), torch.get_rng_state()
    try:
        modelzoo.train(world / "c.yaml", {"trainer.init.backend.num_threads": before[2] + 1}, world / "run")
        after = root.handlers[:], root.level, torch.get_num_threads(), torch.get_rng_state()
        assert before[:3] == after[:3] and torch.equal(before[3], after[3])
    finally:
        root.removeHandler(handler)


def test_an_interrupted_run_has_a_checkpoint_and_goes_on(world, monkeypatch):
    step = Local.train_step
    interrupt = lambda *a: (signal.raise_signal(signal.SIGINT), step(*a))[1]
    monkeypatch.setattr(Local, "train_step", interrupt)
    monkeypatch.setattr(Local, "queue_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        modelzoo.train(world / "c.yaml", {"trainer.init.checkpoint.steps": 4}, world / "run")
    assert [p.name for p in (world / "run/checkpoints").iterdir()] == ["step_1"]
    monkeypatch.undo()
    assert tensors(modelzoo.train(world / "c.yaml", out=world / "run"))


def test_what_is_wrong_with_a_run_is_raised(world):
    def refused(match: str, config, *args, **options) -> None:
        with pytest.raises(UserError, match=match) as e:
            modelzoo.train(config, *args, out=world / "run", **options)
        assert "/tmp/mediswift" not in str(e.value) and not (world / "run" / "checkpoints").exists()

    mapping = json.loads((world / "c.yaml").read_text())
    refused("no such config file", world / "d.yaml")
    refused("a config is a YAML file|a config is a mapping", world / "data" / "a.h5")
    refused("is a folder, and a config is a YAML file; it holds training data", world / "data")
    refused("takes a YAML file or a mapping, got int", 3)
    refused("unknown key 'trainer.init.sed'; did you mean 'seed'", {"trainer": {"init": {"sed": 1}}})
    refused(
        "algorithm: takes .* got 'rigle'; did you mean 'rigl'", mapping, {"trainer.init.sparsity.algorithm": "rigle"}
    )
    refused("set: takes a mapping", mapping, "trainer.init.seed=1")
    refused("set: holds what YAML does not", mapping, {"trainer.init.seed": object()})
    refused("no such data folder", mapping, {"trainer.fit.train_dataloader.data_dir": str(world / "nowhere")})
    refused("target: takes CSX, GPU, CPU or auto, got 'TPU'", mapping, target="TPU")


# --- load


def test_a_run_writes_and_scores(make, capsys):  # noqa: F811
    run = make("s75", sparsity={"sparsity": 0.75})
    model = modelzoo.load(run)
    assert main(["generate", str(run), "--prompt", "the cell", "--max_new_tokens", "6"]) == 0
    assert model.generate("the cell", max_new_tokens=6) == [capsys.readouterr().out.removesuffix("\n")]
    drawn = model.generate(["the cell", ""], max_new_tokens=5, samples=2, temperature=0.9, seed=4)
    assert len(drawn) == 4 and drawn == [
        t for p in ("the cell", "") for t in model.generate(p, max_new_tokens=5, samples=2, temperature=0.9, seed=4)
    ]
    assert model.config.hidden_size == 16 and model.length == 48 and "packed" in " ".join(model.notes)
    assert model.tokenizer.decode(model.tokenizer.encode("the cell")) == "the cell"


def rolling(model, text: str) -> float:
    """Log-likelihood by whole passes of the dense model, token by token: no cache, no windows but the last `length`."""
    module, ids = model.module, [model.tokenizer.eos, *model.tokenizer.encode(text)]
    total = 0.0
    for i in range(1, len(ids)):
        done = (i - 1) // model.length * model.length  # tokens that earlier windows have scored
        end = min(done + model.length, len(ids) - 1)
        context = ids[max(0, end - model.length) : i]
        with torch.inference_mode():
            hidden = module.model.hidden(torch.tensor([context], dtype=torch.int32))
            total += float(torch.log_softmax(module.model.logits(hidden[0, -1:]), -1)[0, ids[i]])
    return total


def test_scores_are_sums_of_log_probabilities(make):  # noqa: F811
    model = modelzoo.load(make("s75", sparsity={"sparsity": 0.75}))
    texts = ["the patients were treated", "", "a", "the cell of the patients " * 15]
    assert len(model.tokenizer.encode(texts[3])) > model.length
    found = model.score(texts)
    np.testing.assert_allclose(found, [rolling(model, t) for t in texts], rtol=1e-4, atol=1e-4)
    assert model.score(texts[0]) == pytest.approx(found[:1]) and found[1] == 0
    prompt, whole = (model.tokenizer.encode(t) for t in ("the patients", "the patients were treated"))
    assert whole[: len(prompt)] == prompt
    with torch.inference_mode():
        logits = model.module.model.logits(model.module.model.hidden(torch.tensor([whole]))[0])
    log_p = torch.log_softmax(logits, -1)[range(len(prompt) - 1, len(whole) - 1), whole[len(prompt) :]].sum()
    choices = model.score_choices("the patients", [" were treated", " cell"])
    assert choices[0] == pytest.approx(float(log_p), abs=1e-4) and choices[1] != choices[0]


def test_prompts_that_are_cut_warn_and_wrong_arguments_are_one_line(make):  # noqa: F811
    model = modelzoo.load(make("s75", sparsity={"sparsity": 0.75}))
    long = "the cell " * 100
    with pytest.warns(UserWarning, match=r"prompts\[0\]: .* are read") as caught:
        model.generate(long, max_new_tokens=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("the", max_new_tokens=1)

    def refused(match: str, call, *args, **options) -> None:
        with pytest.raises(UserError, match=match) as e:
            call(*args, **options)
        assert "\n" not in str(e.value) and "--" not in str(e.value)

    refused("without refuse_long", model.generate, long, refuse_long=True)
    refused("top_k: does nothing", model.generate, "a", temperature=0.0, top_k=3)
    refused("max_new_tokens: must be above 0", model.generate, "a", max_new_tokens=0)
    refused("top_p: takes a share of 1", model.generate, "a", top_p="much")
    refused(r"prompts\[1\]: takes a text, got int", model.generate, ["a", 3])
    refused(r"texts\[0\]: takes a text, got NoneType", model.score, None)
    refused(r"choices\[0\]: has 0 tokens", model.score_choices, "a", [""])
    refused(r"prompts\[0\]: is not UTF-8", model.generate, "\udc80")


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    for match, args, options in (
        ("nowhere: no such run", ("nowhere",), {}),
        (str(tmp_path), (tmp_path,), {}),
        ("path: takes a path, got NoneType", (None,), {}),
        ("target: takes CPU, GPU or auto", (tmp_path,), {"target": "TPU"}),
    ):
        with pytest.raises(UserError, match=match) as e:
            modelzoo.load(*args, **options)
        assert "\n" not in str(e.value)


def test_an_export_is_transformers_own_model(make, tmp_path):  # noqa: F811
    pytest.importorskip("transformers")
    run = make("s75", sparsity={"sparsity": 0.75})
    assert main(["export", str(run), str(tmp_path / "out"), "--tokenizer", str(run)]) == 0
    exported, model = modelzoo.load(tmp_path / "out"), modelzoo.load(run)
    assert type(exported.module).__name__ == "GPT2LMHeadModel" and exported.config.n_embd == 16
    texts = ["the patients were treated", "the cell"]
    np.testing.assert_allclose(exported.score(texts), model.score(texts), rtol=1e-4)
    assert exported.generate(texts, max_new_tokens=8) == model.generate(texts, max_new_tokens=8)


# --- shards


@pytest.mark.parametrize("rows", [3, 5])
def test_a_folder_of_shards_is_a_sequence_of_arrays(tmp_path, rows):
    data = examples(10, rows=rows)
    data[:, 0, 3] = data[:, 2, 2] = 36
    write_shard(tmp_path / "a.h5", data[:6])
    write_shard(tmp_path / "b.h5", data[6:])
    write_manifest(tmp_path, vocab_size=37, eos_id=36, msl=8)
    found = modelzoo.shards(tmp_path)
    assert (len(found), found.msl, found.vocab_size, len(found.files)) == (10, 8, 37, 2)
    assert found.metadata["eos_id"] == 36 and list(found[0]) == list(found.rows) and len(found.rows) == rows
    for i in (0, 5, 6, 9, -1):
        np.testing.assert_array_equal(np.stack(list(found[i].values())), data[i])
    np.testing.assert_array_equal(found[4:9:2]["labels"], data[4:9:2, 2])
    assert found[3:3]["labels"].shape == (0, 8) and len(list(found)) == 10
    assert [list(x) for x in found.documents(0)] == [
        list(x) for x in np.split(np.append(data[0, 0], data[0, 2, -1]), [3, 4]) if 36 not in x
    ]
    with pytest.raises(IndexError):
        found[10]
    for bad, match in ((tmp_path / "none", "no such data folder"), (3, "takes a path, got int")):
        with pytest.raises(UserError, match=match):
            modelzoo.shards(bad)
    write_shard(tmp_path / "plain" / "train" / "a.h5", np.arange(33, dtype=np.int32))
    with pytest.raises(UserError, match=r"holds no HDF5 shard [^;]*; did you mean [^;]*plain/train\?$"):
        modelzoo.shards(tmp_path / "plain")
    with pytest.raises(UserError, match="give msl to cut it"):
        modelzoo.shards(tmp_path / "plain" / "train")
    np.testing.assert_array_equal(modelzoo.shards(tmp_path / "plain" / "train", msl=8)[3]["labels"], np.arange(25, 33))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no HDF5 shard"):
        modelzoo.shards(tmp_path / "empty")
