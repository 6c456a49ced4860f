"""A small world to break: one of everything that a command reads or writes, built once by the real commands."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults import child

MADE = ".made"  # the last file that is written: a world without it is built again
VOCABULARY = 320
LENGTH = 32
WORDS = ("aspirin", "lowers", "fever", "appetite", "renal", "fibrosis", "trial", "of", "patients", "improved")
RUN = """
trainer:
  init:
    seed: 3
    model_dir: run
    model: {{hidden_size: 16, num_hidden_layers: 2, num_heads: 2, filter_size: 32, vocab_size: {vocabulary},
            max_position_embeddings: {length}, dropout_rate: 0.1, attention_dropout_rate: 0.1}}
    optimizer: {{AdamW: {{betas: [0.9, 0.95], lr: 0.01}}}}
    precision: {{enabled: false, max_gradient_norm: 1.0}}
    sparsity: {{algorithm: rigl, sparsity: 0.75, update: {{freq: 2}}}}
    loop: {{max_steps: 6, eval_frequency: 3, eval_steps: 2}}
    checkpoint: {{steps: 2, keep: 3}}
    logging: {{log_steps: 1}}
    loggers: [{loggers}]
  fit:
    train_dataloader: {{data_dir: {shards}/train, batch_size: 4, shuffle: true}}
    val_dataloader: {{data_dir: {shards}/val, batch_size: 4}}
"""
TUNE = """
trainer:
  init:
    seed: 1
    optimizer: {{AdamW: {{lr: 0.005, weight_decay: 0.0}}}}
    precision: {{enabled: false}}
    loop: {{max_steps: 4, eval_frequency: 2}}
    checkpoint: {{steps: 2}}
    loggers: [ProgressLogger, JSONLLogger]
  finetune: {{task: {task}, batch_size: 4, masks: keep, seeds: [1]}}
"""
TASK = """
form: classification
data_dir: {folder}
template: template.yaml
train: train.jsonl
dev: dev.jsonl
"""
TEMPLATE = """
source: "{context}{question}"
target: " {label}"
labels: {"yes": "y", "no": "n"}
"""
STUDY = """
study:
  base: {base}
  output: study
  budget: {{steps: 2}}
  seeds: [1]
  common:
    trainer.init.loop.eval_frequency: 2
    trainer.init.loggers: [JSONLLogger]
  axes:
    method:
      dense: {{trainer.init.sparsity: []}}
      s75: {{trainer.init.sparsity: 0.75}}
"""
ARTICLE = """<?xml version="1.0" encoding="UTF-8"?>
<article article-type="research-article" xml:lang="en"><front><journal-meta/><article-meta>
<article-id pub-id-type="pmid">{n}</article-id><article-id pub-id-type="pmcid">PMC{n}</article-id>
<title-group><article-title>An <italic>invented</italic> trial {n}</article-title></title-group>
<pub-date><year>2001</year></pub-date>
<permissions><license xlink:href="https://creativecommons.org/licenses/by/4.0/"
 xmlns:xlink="http://www.w3.org/1999/xlink"><license-p>CC BY</license-p></license></permissions>
<abstract><p>{abstract}</p></abstract></article-meta></front>
<body><sec><title>Methods</title><p>{body}</p><table-wrap><table><tr><td>1</td></tr></table></table-wrap></sec></body>
</article>
"""


class World(NamedTuple):
    """Where everything is.

    Under `path`: xml/ (PubMed citations), jats/*.nxml, jats/package.tar.gz, jats/package.tar, jsonl/docs.jsonl,
    jsonl/pairs.jsonl, jsonl/ids.jsonl, tokenizer.json, shards/ (a job's output: train, val, tokenizer, documents),
    train.yaml, tune.yaml, task/ (task.yaml, template.yaml, train.jsonl, dev.jsonl), study.yaml, run/ (6 steps of a
    2-layer model at 75 %, with checkpoints/step_2, _4, _6), half/ (its first 4), tuned/ (4 steps),
    export/ (Hugging Face), model.mdl, bioasq/training.json (yes/no questions).
    No file of it may be changed: a case works on copies.
    """

    path: Path

    def copy(self, *names: str, to: Path) -> None:
        """Copies of files and folders of the world, under their own names in the folder `to`."""
        to.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, target = self.path / name, to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    @property
    def job_flags(self) -> list[str]:
        """What every preprocessing job of the world has in common: flags with a value each, then one without."""
        return ["--tokenizer", str(self.path / "tokenizer.json"), "--msl", str(LENGTH), "--val_fraction", "0.2",
                "--workers", "1", "--set", "unit_megabytes=0.02", "--set", "buckets=2", "--set", "shard_tokens=8192",
                "--quiet"]  # fmt: skip


def build(folder: Path) -> World:
    """The world in `folder`, built unless it is there whole. `child.warm_up` comes first."""
    world = World(folder)
    if (folder / MADE).exists():
        return world
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_texts(folder)
    data = lambda *words: _do(folder, "data_preprocessing", *words)
    zoo = lambda *words: _do(folder, "modelzoo", *words)
    data("synthetic", "--output", "xml", "--documents", 60, "--files", 2)
    data("tokenizer", "--input", "xml", "--output", "tokenizer.json", "--vocab_size", VOCABULARY)
    data("pubmed", "--input", "xml", "--output", "shards", *world.job_flags)
    (folder / "train.yaml").write_text(train_config(world))
    (folder / "tune.yaml").write_text(TUNE.format(task=folder / "task/task.yaml"))
    (folder / "study.yaml").write_text(STUDY.format(base=folder / "train.yaml"))
    zoo("CPU", "-p", "train.yaml", "-m", "train_and_eval", "-o", "run")
    zoo("CPU", "-p", "train.yaml", "-m", "train_and_eval", "-o", "half", "--max_steps", 4)
    zoo("CPU", "-p", "tune.yaml", "-m", "finetune", "--checkpoint_path", "run", "-o", "tuned")
    zoo("export", "run", "export")
    zoo("export", "run", "model.mdl")
    shutil.rmtree(folder.with_name(f"{folder.name}.tmp"), ignore_errors=True)
    (folder / MADE).touch()
    return world


def train_config(world: World, loggers: str = "ProgressLogger, JSONLLogger, TensorBoardLogger") -> str:
    """The YAML of the world's training runs."""
    return RUN.format(vocabulary=VOCABULARY, length=LENGTH, shards=world.path / "shards", loggers=loggers)


def _do(folder: Path, program: str, *words: object) -> None:
    outcome = child.run(program, words, folder, seconds=300)
    if outcome.code != 0:
        raise RuntimeError(f"{program} {' '.join(map(str, words))}: {outcome.code}\n{outcome.out}\n{outcome.err}")


def sentences(n: int) -> Iterator[str]:
    """Invented sentences, no two the same."""
    for i in range(n):
        yield " ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 12)).capitalize() + f" in group {i}."


def _write_texts(folder: Path) -> None:
    """What no command makes: articles, packages, JSONL and a task."""
    lines = list(sentences(60))
    for name in ("jats", "jsonl", "task"):
        (folder / name).mkdir()
    articles = {}
    for i in range(4):
        text = ARTICLE.format(n=100 + i, abstract=" ".join(lines[i::20]), body=" ".join(lines[i::7]))
        articles[f"PMC{100 + i}.nxml"] = text.encode()
        (folder / "jats" / f"PMC{100 + i}.nxml").write_text(text)
    for name, mode in (("package.tar", "w"), ("package.tar.gz", "w:gz")):
        with tarfile.open(folder / "jats" / name, mode) as tar:
            for member, data in articles.items():
                head = tarfile.TarInfo(f"PMC000xxxxxx/{member}")
                head.size = len(data)
                tar.addfile(head, io.BytesIO(data))
    rows = {
        "jsonl/docs.jsonl": [
            {"id": i, "text": t, "year": 1990 + i % 30, "language": "en"} for i, t in enumerate(lines)
        ],
        "jsonl/pairs.jsonl": [{"id": i, "prompt": f"Is {t[:20]}?", "completion": "yes"} for i, t in enumerate(lines)],
        "jsonl/ids.jsonl": [{"input_ids": [(i * j) % 300 + 1 for j in range(1, 40)]} for i in range(30)],
    }
    questions = [
        {"id": str(i), "body": f"{t[:30]}?", "type": "yesno", "exact_answer": ["no", "yes"][i % 2],
         "snippets": [{"text": t}]}
        for i, t in enumerate(lines)
    ]  # fmt: skip
    (folder / "bioasq").mkdir()
    (folder / "bioasq/training.json").write_text(json.dumps({"questions": questions}))
    for split, first in (("train", 0), ("dev", 8)):
        rows[f"task/{split}.jsonl"] = [
            {"id": str(i), "question": f"is {i} odd?", "context": "x" * (i % 5), "label": ["no", "yes"][i % 2]}
            for i in range(first, first + 8)
        ]
    for name, records in rows.items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "task/template.yaml").write_text(TEMPLATE)
    (folder / "task/task.yaml").write_text(TASK.format(folder=folder / "task"))


def size(world: World) -> int:
    """Bytes of all files of the world."""
    return sum(os.path.getsize(p) for p in world.path.rglob("*") if p.is_file())
