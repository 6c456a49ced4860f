"""ONNX: what onnxruntime computes from the folder is what the model does, for any batch and any length."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from modelzoo.checksums import check_checksums
from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.gpt import GPTModel
from modelzoo.training.checkpoints import checkpoint
from tests.interop.sparse_runs import PERMUTED, read_dense, train_sparse

BASE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "filter_size": 32, "vocab_size": 40,
    "max_position_embeddings": 12, "initializer_range": 0.2, "dropout_rate": 0.1,
}  # fmt: skip
KINDS = {
    "learned": {"mup_base_hidden_size": 8, "mup_base_filter_size": 16, "use_bias_in_output": True},
    "rotary": {
        "position_embedding_type": "rotary", "rotary_dim": 8, "norm_type": "rmsnorm", "nonlinearity": "swiglu"
    },
    "alibi": {"position_embedding_type": "alibi", "embedding_layer_norm": True, "nonlinearity": "relu"},
}  # fmt: skip


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_what_the_model_does(kind, tmp_path, capfd):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (the onnx extra)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the onnx extra)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the onnx extra)")
    folder = train_sparse(tmp_path, "run", BASE | KINDS[kind], vocab=37)
    capfd.readouterr()
    out = tmp_path / "onnx"
    assert run("export", folder, out, "--format", "onnx") == 0
    said = capfd.readouterr()
    assert "input_ids [batch, sequence] to logits" in said.out and not said.err
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "checksums.json", "model.onnx"]
    check_checksums(str(out))
    assert "library_name: onnx" in (out / "README.md").read_text()
    files, _ = checkpoint.load(checkpoint.newest(str(folder / "checkpoints"))[0])
    model = GPTModel(load(folder / "config.yaml", Config).trainer.init.model).eval()
    model.load_state_dict({n: x for n, x in files["model"].items() if not n.endswith("_mask")}, strict=False)
    session = runtime.InferenceSession(out / "model.onnx")
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, made.name) == ("input_ids", "logits") and all(isinstance(d, str) for d in given.shape)
    for shape in ((1, 1), (3, 7), (2, 12)):
        ids = torch.randint(0, 40, shape)
        with torch.no_grad():
            expected = model.model.logits(model.model.hidden(ids)).numpy()
        np.testing.assert_allclose(session.run(None, {"input_ids": ids.numpy()})[0], expected, rtol=1e-4, atol=1e-5)
    stored = [onnx.numpy_helper.to_array(x) for x in onnx.load(out / "model.onnx").graph.initializer]
    masks = [(n, x) for n, x in files["model"].items() if n.endswith("_mask")]
    assert masks
    for name, mask in masks:  # exactly, of a weight that is stored once, or turned round
        weight = (files["model"][name.removesuffix("_mask")] * mask).numpy()
        same = [x for x in stored if np.array_equal(x, weight) or np.array_equal(x, weight.T)]
        assert len(same) == 1 and (same[0] == 0).sum() == int((~mask).sum()), name


def test_weights_of_permuted_inputs_are_written_in_the_models_own_order(tmp_path, monkeypatch):
    """The model that is traced has them, so this needs no onnx; what is written of it, the tests above hold."""
    folder, traced = train_sparse(tmp_path, "run", BASE, vocab=37, sparsity=PERMUTED), {}

    def export(model, ids, **_):
        traced.update(model.state_dict())
        return SimpleNamespace(save=lambda path: Path(path).touch())

    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(torch.onnx, "export", export)
    assert run("export", folder, tmp_path / "onnx", "--format", "onnx") == 0
    dense = read_dense(folder)
    for name, weight in dense.items():
        np.testing.assert_array_equal(traced[name].numpy(), weight)


def test_a_context_of_one_token_is_fixed(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the onnx extra)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the onnx extra)")
    folder = train_sparse(tmp_path, "run", BASE | {"max_position_embeddings": 1}, vocab=37, msl=1)
    assert run("export", folder, tmp_path / "onnx", "--format", "onnx") == 0
    session = runtime.InferenceSession(tmp_path / "onnx/model.onnx")
    assert session.run(None, {"input_ids": np.zeros((3, 1), np.int64)})[0].shape == (3, 1, 40)


def test_what_onnx_cannot_be_is_one_line(tmp_path, capsys, monkeypatch):
    folder = train_sparse(tmp_path, "run", BASE, vocab=37)
    before = sorted(tmp_path.iterdir())
    for missing, flags, words in (
        (None, ("--dtype", "bfloat16"), "--dtype bfloat16: onnx is written in float32"),
        ("onnx", (), "ONNX needs onnx: pip install onnx onnxscript"),
    ):
        if missing is not None:
            monkeypatch.setitem(sys.modules, missing, None)
        capsys.readouterr()
        assert run("export", folder, tmp_path / "onnx", "--format", "onnx", *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error
        assert sorted(tmp_path.iterdir()) == before
