"""What a job's config may hold: bounded sizes, paths that are there, and a line for what is not."""

import os
import re

import pytest

from data_preprocessing import cli

BOUNDS = {
    "msl": 2**20 + 1, "shard_tokens": 10**12, "buckets": 10**6, "unit_megabytes": 1e9, "max_file_gigabytes": "inf",
    "seed": 2**63, "tokenizer.vocab_size": 2**31, "tokenizer.train_megabytes": 10**9, "filters.min_chars": 10**10,
    "filters.decontaminate_ngram": 10**6, "filters.near_permutations": 10**5, "text_key": "x" * 1000,
}  # fmt: skip


def refuse(words, capsys) -> str:
    assert cli.main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("key,value", BOUNDS.items(), ids=BOUNDS)
def test_sizes_have_bounds(key, value, tmp_path, capsys):
    words = ["jsonl", "--input", tmp_path, "--output", tmp_path / "out", "--set", f"{key}={value}"]
    said = refuse(words, capsys)
    assert re.search(rf"^error: .*{re.escape(key)}[: ]", said) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("seed", "true", "takes an integer, got true"), ("msl", "32.0", "takes an integer, got 32.0; write 32"),
        ("val_fraction", "'0.1'", "takes a number, got '0.1'; write the number without quotes"),
        ("text.body", "no", "takes true or false, got 'no'; write false"),
        ("filters.boilerplate", "1", "takes true or false, got 1"), ("filters.near_duplicates", "true", "takes a num"),
        ("text_key", "1", "takes text, got 1"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(key, value, reason, tmp_path, capsys):
    """As in the trainer's configs: pydantic would take true for 1 and "no" for false in silence."""
    words = ["jsonl", "--input", tmp_path, "--output", tmp_path / "out", "--set", f"{key}={value}"]
    assert f"{key}: {reason}" in refuse(words, capsys)


@pytest.mark.parametrize("workers", [0, 100_000, "9" * 400, "9" * 5000])
def test_workers_have_bounds(workers, tmp_path, capsys):
    said = refuse(["jsonl", "--input", tmp_path, "--output", tmp_path / "out", "--workers", workers], capsys)
    assert said.startswith("error: --workers") and len(said) < 200


def test_a_path_with_a_nul_is_refused(tmp_path, capsys):
    words = ["jsonl", "--input", tmp_path, "--output", tmp_path / "out", "--set", r'tokenizer.path="a\u0000b"']
    assert "tokenizer.path: a path holds no NUL character" in refuse(words, capsys)


def test_a_path_at_fault_is_named_with_its_line(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    config = tmp_path / "job.yaml"
    text = (
        f"source: jsonl\noutput: {tmp_path}/out\ninput:\n- {tmp_path}/a.jsonl\n- INPUT\n"
        "tokenizer:\n  path: TOKENIZER\nfilters:\n  decontaminate: [TESTS]\n"
    )
    good = {"INPUT": tmp_path / "a.jsonl", "TOKENIZER": "train", "TESTS": tmp_path / "a.jsonl"}
    pipe, gone = tmp_path / "pipe", tmp_path / "gone"
    for name, key, line in (
        ("INPUT", "input.1", 5),
        ("TOKENIZER", "tokenizer.path", 7),
        ("TESTS", "decontaminate.0", 9),
    ):
        for path, reason in ((gone, "no such file or folder"), (pipe, "is neither a file nor a folder")):
            filled = text
            for word, value in {**good, name: path}.items():
                filled = filled.replace(word, str(value))
            config.write_text(filled)
            said = refuse(["jsonl", "--config", config], capsys)
            assert said.startswith(f"error: {config}:{line}: ") and f"{key}: {path}: {reason}" in said
    said = refuse(["jsonl", "--input", gone, "--output", tmp_path / "out"], capsys)
    assert said == f"error: the command line: input.0: {gone}: no such file or folder\n"
