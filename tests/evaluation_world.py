"""A small world to evaluate in: a tokenizer, yes/no questions, a trained run, a task file over them."""

import json
from pathlib import Path

import numpy as np
import pytest

from modelzoo.cli import main
from modelzoo.data.tokenizer import Tokenizer, load_tokenizer
from tests.support import write_manifest, write_shard

WORDS = ["aspirin lowers fever", "fever lowers appetite yes no maybe", "does it? Answer: question context"]
CONFIG = """
trainer:
  init:
    model: {hidden_size: 16, num_hidden_layers: 2, num_heads: 2, filter_size: 32, vocab_size: 320,
            max_position_embeddings: 96, dropout_rate: 0.0, attention_dropout_rate: 0.0}
    optimizer: {AdamW: {lr: 0.01}}
    precision: {enabled: false}
    sparsity: {algorithm: static, sparsity: 0.5}
    loop: {max_steps: 3}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""
TASK = """
form: classification
template: template.yaml
train: train.jsonl
dev: dev.jsonl
test: test.jsonl
long_fields: [context]
"""
TEMPLATE = """
source: "{context}\\nQuestion: {question}\\nAnswer:"
target: " {label}"
labels: {"yes": "yes", "no": "no", "maybe": "maybe so"}
"""


@pytest.fixture(scope="session")
def words() -> str:
    """A byte-level tokenizer.json of 320 entries, `<|endoftext|>` first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 5, trainer)
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def tokenizer(words, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    path.write_text(words)
    return load_tokenizer(str(path))


def questions(folder: Path, name: str, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    with open(folder / name, "w") as file:
        for i in range(count):
            context = " ".join(draw.choice(["aspirin", "lowers", "fever", "appetite"], draw.integers(1, 12)))
            label = str(draw.choice(["yes", "no", "maybe"], p=[0.6, 0.3, 0.1]))
            row = {"id": f"{name}-{i}", "context": context, "question": "does it lower fever?", "label": label}
            file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="session")
def world(tmp_path_factory, words) -> Path:
    """A folder with data/, task.yaml, template.yaml and run/ (three steps of a sparse model)."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "data/train").mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 320, (16, 3, 96)).astype(np.int32)
    rows[:, 1] = 1
    write_shard(folder / "data/train/output_chunk_0_0.h5", rows)
    write_manifest(folder / "data/train", eos_id=0, msl=96)
    (folder / "data/tokenizer.json").write_text(words)
    (folder / "tasks").mkdir()
    for name, count, seed in (("train", 30, 0), ("dev", 24, 1), ("test", 20, 2)):
        questions(folder / "tasks", f"{name}.jsonl", count, seed)
    (folder / "task.yaml").write_text(TASK + f"data_dir: {folder / 'tasks'}\n")
    (folder / "template.yaml").write_text(TEMPLATE)
    (folder / "c.yaml").write_text(CONFIG.replace("DATA", str(folder / "data/train")))
    assert main(["CPU", "-p", str(folder / "c.yaml"), "-m", "train", "-o", str(folder / "run")]) == 0
    return folder
