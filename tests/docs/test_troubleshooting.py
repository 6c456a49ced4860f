"""docs/troubleshooting.md quotes the code: each line's fixed words are in it, and commands print such lines."""

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli
from modelzoo.config.loading.load import dump
from modelzoo.entry import NO_MEMORY
from tests.docs.pages import REPO
from tests.study.conftest import tiny_config
from tests.support import examples, write_manifest, write_shard

PAGE = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `((?:error: |damaged ).*?)` \|", PAGE, re.M)
OTHERS = ("Makefile", "scripts/env-csx.sh")


def fixed_parts(line: str) -> list[str]:
    return [part for part in re.split(r"\.{3,}", line.removeprefix("error: ")) if re.search(r"\w", part)]


def flatten(node: ast.expr) -> str:
    """A string's fixed parts, with a NUL for each that is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "\0"
    if isinstance(node, ast.JoinedStr):
        return "".join(map(flatten, node.values))
    if isinstance(node, ast.BinOp):
        return flatten(node.left) + flatten(node.right)
    return "\0"


@cache
def literals() -> str:
    files = [p for room in ("modelzoo", "data_preprocessing") for p in sorted((REPO / room).rglob("*.py"))]
    trees = [ast.parse(p.read_text(encoding="utf-8")) for p in files]
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    found = [flatten(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n".join([*found, *((REPO / name).read_text(encoding="utf-8") for name in OTHERS)])


def test_the_page_has_its_messages_once():
    assert 45 < len(QUOTED) == len(set(QUOTED)) and f"error: {NO_MEMORY}" in QUOTED


@pytest.mark.parametrize("line", QUOTED, ids=lambda line: line[:60])
def test_a_quoted_message_is_the_codes(line):
    parts = fixed_parts(line)
    assert sum(map(len, parts)) >= 12, "too little of it is fixed"
    assert [part for part in parts if part not in literals()] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("troubles")
    for split, n in (("train", 60), ("val", 8)):
        write_shard(root / "data" / split / "a.h5", examples(n, msl=12))
        write_manifest(root / "data" / split, n_examples=n, msl=12)
    config = tiny_config(root / "data", root / "run")
    (root / "c.yaml").write_text(dump(config, "a test"), encoding="utf-8")
    (root / "bad.yaml").write_text("trainer:\n  init:\n   model: {a: 1\n", encoding="utf-8")
    (root / "task").mkdir()
    (root / "pickled.bin").write_bytes(b"x")
    (root / "shards").mkdir()
    (root / "shards" / "other.txt").write_text("mine", encoding="utf-8")
    (root / "in.jsonl").write_text(json.dumps({"text": "word " * 9}) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("command", "phrase"),
    [
        ("trian c.yaml", "is no mode, verb"),
        ("inspect data", "is a verb of python -m"),
        ("-p c.yaml", "-m is missing"),
        ("plan c.yaml --max_stepss 3", "unknown flag"),
        ("plan c.yaml --split dev", "does nothing with -m"),
        ("plan c.yaml --set x", "write key=value"),
        ("plan no.yaml", "no such config file"),
        ("plan bad.yaml", "not valid YAML"),
        ("plan c.yaml --set trainer.init.max_steps=3", "unknown key"),
        ("plan c.yaml --set trainer.fit.train_dataloader.data_dir=none", "no such data folder"),
        ("plan c.yaml --set trainer.fit.train_dataloader.data_dir=data", "holds no HDF5 shard"),
        ("train c.yaml --set trainer.init.model.vocab_size=8", "outside model.vocab_size"),
        ("plan c.yaml --set 'trainer.init.sparsity={sparsity: 0.5, param_filter: [no]}'", "matches no"),
        ("eval c.yaml -o nothing", "holds no whole checkpoint"),
        ("report run -o r.html", "none of these runs was validated"),
        ("import gpt2 out", "wanted is"),
        ("import pickled.bin out", "is pickled"),
        ("data pubmed --input no --output out", "no such file or folder"),
        ("data pubmed --input task --output out", "holds no pubmed input"),
        ("data jsonl --input in.jsonl --output shards --tokenizer train", "is not empty and was not begun"),
    ],
)
def test_commands_print_the_pages_lines(command, phrase, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    words = shlex.split(command)
    main = data_cli.main if words[0] == "data" else cli.main
    assert main(words[words[0] == "data" :]) == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (line,) = [line for line in printed if phrase in line]
    patterns = [re.escape(quoted).replace(re.escape("..."), ".*") for quoted in QUOTED]
    where = r"( \([\w.]+, .*\))?"  # the key and line that gave a path
    assert any(re.fullmatch(pattern + where, line) for pattern in patterns), line
