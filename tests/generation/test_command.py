"""`run.py generate` from the command line: texts, JSON lines, a terminal; and what is refused in one line."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzoo.files import sha256
from tests.generation.conftest import run

FEW = ("--max_new_tokens", "6", "--target", "CPU")


@pytest.fixture
def folder(make):
    return make("learned")


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def refused(capsys, *argv) -> str:
    """The one line of a refusal."""
    assert run("generate", *argv) == 2
    out, err = capsys.readouterr()
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert out == "" and "Traceback" not in err
    return line.removeprefix("error: ")


def test_texts_and_json_lines_are_the_same(folder, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"id": "x", "q": "aspirin"}\n{"q": "does it lower fever?"}\n')
    asked = ("--file", tmp_path / "p.jsonl", "--field", "q", *FEW)
    assert run("generate", folder, *asked, "-o", tmp_path / "o.jsonl") == 0
    capsys.readouterr()
    found = lines((tmp_path / "o.jsonl").read_text())
    assert [(r.get("id"), r["prompt"]) for r in found] == [("x", "aspirin"), (None, "does it lower fever?")]
    assert found[0].keys() == {"id", "prompt", "text", "end", "tokens", "prompt_tokens", "prompt_tokens_cut"}
    assert run("generate", folder, *asked, "-o", "-", "--batch_size", "1") == 0
    assert lines(capsys.readouterr().out) == found
    assert run("generate", folder, "--prompt", "aspirin", *FEW) == 0
    assert capsys.readouterr().out == found[0]["text"] + "\n"
    assert run("generate", folder, "--prompt", "aspirin", "--prompt", "does it lower fever?", *FEW) == 0
    shown = capsys.readouterr().out
    assert shown == f"--- --prompt 1\n{found[0]['text']}\n--- --prompt 2\n{found[1]['text']}\n"


def test_samples_have_their_number_and_seed(folder, capsys):
    assert run("generate", folder, "--prompt", "fever", "--samples", "3", "--seed", "5", *FEW, "-o", "-") == 0
    found = lines(capsys.readouterr().out)
    assert [(r["sample"], r["seed"]) for r in found] == [(0, 5), (1, 5), (2, 5)] and len(
        {r["text"] for r in found}
    ) == 3


def test_a_file_that_is_there_stays(folder, tmp_path, capsys):
    (tmp_path / "o.jsonl").write_text("mine")
    assert "o.jsonl: exists" in refused(capsys, folder, "--prompt", "a", "-o", tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_text() == "mine"


def test_a_long_prompt_is_cut_and_named_or_refused(folder, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("fever " * 60 + "\n")
    assert run("generate", folder, "--file", tmp_path / "p.txt", "--max_new_tokens", "100", "-o", "-") == 0
    out, err = capsys.readouterr()
    assert "p.txt:1: " in err and "leave no room in the context of 48; its last 24 are read" in err
    (row,) = lines(out)
    assert row["prompt_tokens"] == 24 and row["prompt_tokens_cut"] > 30
    if row["end"] == "context":
        assert "1 of 1 texts end where the context of 48 tokens is full" in err
    line = refused(capsys, folder, "--file", tmp_path / "p.txt", "--refuse_long")
    assert "p.txt:1: " in line and "leave no room in the context of 48; shorten the prompt" in line


def test_a_terminal_is_asked(folder, monkeypatch, capsys):
    given = iter(["fever", "  ", "fever"])

    def ask(_: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", ask)
    assert run("generate", folder, *FEW) == 0
    first, second, end = capsys.readouterr().out.split("\n")[:3]
    assert first == second and end == ""
    assert "-o: takes the texts of" in refused(capsys, folder, "-o", "x.jsonl")


def changed(folder, to, tensors) -> None:
    """A copy of a run with other weights, and a manifest that fits them."""
    shutil.copytree(folder, to)
    step = to / "checkpoints/step_1"
    save_file(tensors(load_file(step / "model.safetensors")), step / "model.safetensors")
    manifest = json.loads((step / "manifest.json").read_text())
    file = step / "model.safetensors"
    manifest["files"]["model.safetensors"] |= {"bytes": file.stat().st_size, "sha256": sha256(str(file))}
    (step / "manifest.json").write_text(json.dumps(manifest))


def test_what_does_not_fit_is_one_line(folder, tmp_path, capsys):
    ask = ("--prompt", "fever", *FEW)
    changed(folder, tmp_path / "bad", lambda w: {n: x * (float("nan") if "ln_f" in n else 1) for n, x in w.items()})
    assert "its logits are not finite (--prompt, after 0 new tokens)" in refused(capsys, tmp_path / "bad", *ask)
    changed(folder, tmp_path / "odd", lambda w: {**w, "extra.weight": torch.zeros(2)})
    assert "extra.weight is in its weights alone" in refused(capsys, tmp_path / "odd", *ask)
    shutil.copytree(folder, tmp_path / "mute")
    (tmp_path / "mute/tokenizer.json").unlink()
    line = refused(capsys, tmp_path / "mute", *ask)
    assert "no tokenizer.json" in line and "name it with --tokenizer PATH" in line
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {"zz": 400}
    (tmp_path / "other.json").write_text(json.dumps(words))
    line = refused(capsys, folder, *ask, "--tokenizer", tmp_path / "other.json")
    assert "token ids up to 400, the model's vocabulary is 311; this is not its tokenizer" in line
    assert "nowhere: no such run" in refused(capsys, tmp_path / "nowhere", *ask)


def test_characters_without_a_token_are_named(folder, tmp_path, capsys):
    """Of a tokenizer that has an unknown token, and of one that passes over what it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<eos>": 0, "[UNK]": 1, "fever": 2, "f": 3, "e": 4}
    whole = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, tokenizer in (("unknown", whole), ("silent", Tokenizer(models.BPE(vocab, [])))):
        tokenizer.save(str(tmp_path / f"{name}.json"))
        text = "fever ßx" if name == "unknown" else "feßf"
        line = refused(capsys, folder, "--prompt", text, *FEW, "--tokenizer", tmp_path / f"{name}.json")
        at = text.index("ß") + 1
        assert line == f"--prompt: '\\xdf' (character {at}) is no token of {tmp_path / name}.json"
