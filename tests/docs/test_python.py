"""docs/python.md, the page on sparsify and the notebook do what they show, as a reader would run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import modelzoo
from tests.docs.pages import REPO
from tests.evaluation_world import words  # noqa: F401 - a fixture
from tests.support import TINY, examples, write_manifest, write_shard


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", (REPO / "docs" / page).read_text(encoding="utf-8"), re.S)


@pytest.fixture
def place(tmp_path, monkeypatch, words) -> Path:  # noqa: F811
    """A working folder with the data and the config that docs/python.md names, made small."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data" / "quickstart" / "train"
    write_shard(data / "a.h5", examples(24, vocab=311))
    write_manifest(data, vocab_size=311, eos_id=0, objective="lm")
    (data / "tokenizer.json").write_text(words)
    init = {
        "model": {**TINY, "vocab_size": 311, "max_position_embeddings": 64},
        "optimizer": {"AdamW": {"lr": 0.01}}, "precision": {"enabled": False}, "sparsity": 0.75,
        "loop": {"max_steps": 2}, "logging": {"log_level": "error"},
    }  # fmt: skip
    loader = {"data_dir": str(data), "batch_size": 4}
    config = {"trainer": {"init": init, "fit": {"train_dataloader": loader, "val_dataloader": loader}}}
    (tmp_path / "configs" / "quickstart").mkdir(parents=True)
    (tmp_path / "configs" / "quickstart" / "s75.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_the_page_runs(place, capsys):
    torch.manual_seed(0)
    module = torch.nn.Linear(16, 16)
    space = {"module": module, "optimizer": torch.optim.SGD(module.parameters(), 0.1)}
    code = "\n".join(blocks("python.md")).replace('max_steps": 1000', 'max_steps": 4')
    exec(code, space)
    assert space["run"] == "runs/s75" and (place / "runs/s75/checkpoints/step_4").exists()
    assert "did you mean 'rigl'?" in capsys.readouterr().out and space["sparsity"].sparsity > 0.79
    page = (REPO / "docs" / "python.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in modelzoo.__all__)


def test_the_page_on_sparsify_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    first, example, cerebras = blocks("howto/sparsify_any_model.md")
    torch.manual_seed(0)
    space = {}
    exec(example, space)
    out = capsys.readouterr().out
    assert out.count("gave up their place") == 2 and "transformer.h.1.mlp.c_proj.weight" in out  # at steps 5 and 10
    assert set(torch.load("last.pt")["sparsity"]) == {"steps", "masks", "born", "seeds"}
    for text in (first, cerebras):
        module = torch.nn.Linear(16, 16)
        space = {"module": module, "optimizer": torch.optim.SGD(module.parameters(), 0.1), "modelzoo": modelzoo}
        space |= {"batches": torch.randn(2, 4, 16), "compute_loss": lambda module, batch: module(batch).pow(2).sum()}
        exec(text, space)
        assert space["sparsity"].sparsity > 0.79


def test_every_method_is_on_its_page():
    from modelzoo.library.model import Model
    from modelzoo.library.shards import ShardFolder
    from modelzoo.library.sparse_training import SparseTraining

    for kind, page in (
        (Model, "python.md"),
        (ShardFolder, "python.md"),
        (SparseTraining, "howto/sparsify_any_model.md"),
    ):
        text = (REPO / "docs" / page).read_text(encoding="utf-8")
        for name in (n for n in vars(kind) if not n.startswith("_") and n not in ("attach", "rows")):
            assert re.search(rf"\b{name}\b", text), (page, name)


def test_the_notebook_runs_cell_by_cell(tmp_path):
    """Its code as a kernel runs it, in a folder of its own; nothing of it is stored in the repository."""
    pytest.importorskip("transformers")
    book = json.loads((REPO / "docs" / "notebooks" / "first_steps.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and set(book) == {
        "cells",
        "metadata",
        "nbformat",
        "nbformat_minor",
    }
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids)
    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == keys | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    run = (
        "import json, sys, torch\ntorch.set_num_threads(1)\nspace = {'__name__': '__main__'}\n"
        "for cell in json.load(sys.stdin):\n    exec(cell, space)\n"
        "losses = space['losses']\nprint(len(losses), losses[-1] < losses[0], space['likely'] > space['unlikely'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", run], input=json.dumps(cells), text=True, capture_output=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\n20 True True\n" in done.stdout
