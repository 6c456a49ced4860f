"""Every file and folder that a command makes has the permissions that the umask leaves a new one."""

import os
import stat

import pytest

from data_preprocessing import cli as preprocessing
from modelzoo.cli import main

CONFIG = """
trainer:
  init:
    model: {hidden_size: 16, num_hidden_layers: 1, num_heads: 2, filter_size: 32, vocab_size: 300,
            max_position_embeddings: 16}
    optimizer: {AdamW: {lr: 0.01}}
    sparsity: {algorithm: static, sparsity: 0.5, param_filter: '*linear_layer.weight'}
    loop: {max_steps: 1}
  fit:
    train_dataloader: {data_dir: DATA/train, batch_size: 2}
    val_dataloader: {data_dir: DATA/val, batch_size: 2}
"""


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], indirect=True, ids=oct)
def test_files_are_as_the_umask_says(umask, tmp_path):
    xml, words = tmp_path / "xml", tmp_path / "tokenizer.json"
    for command in (
        ("synthetic", "--output", xml, "--documents", 40),
        ("tokenizer", "--input", xml, "--output", words, "--vocab_size", 300),
        ("pubmed", "--input", xml, "--output", tmp_path / "data", "--tokenizer", words, "--msl", 16, "--workers", 1),
    ):
        assert preprocessing.main(list(map(str, command))) == 0, command[0]
    (tmp_path / "c.yaml").write_text(CONFIG.replace("DATA", str(tmp_path / "data")))
    run = tmp_path / "run"
    assert main(["CPU", "-p", str(tmp_path / "c.yaml"), "-m", "train_and_eval", "-o", str(run)]) == 0
    for verb, *paths in (
        ("export", run, tmp_path / "folder"),
        ("export", run, tmp_path / "zoo.mdl"),
        ("import", tmp_path / "folder", tmp_path / "again"),
        ("report", run, "-o", tmp_path / "report.html"),
        ("generate", run, "--prompt", "the", "--max_new_tokens", 2, "-o", tmp_path / "texts.jsonl"),
        ("compare", run, run, "-o", tmp_path / "picture.svg"),
    ):
        assert main([verb, *map(str, paths)]) == 0, verb
    for path in tmp_path.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
