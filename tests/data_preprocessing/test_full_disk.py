"""A disk that takes no more in the middle of any file: one line that names the file, and the same command goes on."""

import os
import shutil
import sys

import pytest

from data_preprocessing import cli
from data_preprocessing.sources import synthetic

resource = pytest.importorskip("resource", reason="the system limits no sizes of files")


def run(words, limit: int | None = None) -> tuple[int, str]:
    """(exit code, stderr) of a command in a fork of this process, whose files may have `limit` bytes at most."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        code = 70
        try:
            os.dup2(writer, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 it ends with the fork
            sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            code = cli.main([str(word) for word in words])
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        err = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), err


@pytest.fixture(scope="module")
def xml(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("xml") / "xml"
    synthetic.write(str(folder), 60, 0, 1)
    shutil.copy(tokenizer, folder.parent / "tokenizer.json")
    return folder


def job(xml, out):
    how = ("--quiet", "--workers", 1, "--msl", 64, "--set", "buckets=1", "--set", "filters.near_duplicates=0.8")
    return ["pubmed", "--input", xml, "--output", out, "--tokenizer", xml.parent / "tokenizer.json", *how]


COMMANDS = {
    "job": job,
    "synthetic": lambda xml, out: ["synthetic", "--output", out, "--documents", 100],
    "tokenizer": lambda xml, out: ["tokenizer", "--input", xml, "--output", out / "t.json", "--vocab_size", 260],
    "pack": lambda xml, out: ["pack", "--input", xml.parent / "shards" / "train", "--output", out, "--msl", 32],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(name, xml, tmp_path, hash_tree):
    if not (xml.parent / "shards").exists():
        assert run(job(xml, xml.parent / "shards"))[0] == 0
    (tmp_path / "whole").mkdir()
    words = COMMANDS[name](xml, tmp_path / "whole" / "out")
    assert run(words) == (0, "")
    whole, failed = hash_tree(tmp_path / "whole"), 0
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for k, limit in enumerate((100, largest // 2, largest - 1)):
        (tmp_path / str(k)).mkdir()
        words = COMMANDS[name](xml, tmp_path / str(k) / "out")
        code, said = run(words, limit)
        failed += code == 2
        assert code in (0, 2) and said.count("\n") == (code == 2), said
        if code:
            assert said.startswith(f"error: {tmp_path / str(k) / 'out'}") and "File too large" in said
        assert run(words) == (0, "") and hash_tree(tmp_path / str(k)) == whole
    assert failed == 3
