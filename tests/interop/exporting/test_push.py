"""`run.py push`: an export is checked and its card completed; the printed command uploads it, and nothing else does."""

import json
import os
import re
import shlex
import shutil
import socket

import pytest

from modelzoo.checksums import check_checksums
from modelzoo.cli import main
from modelzoo.files import write_text
from tests.support import examples, write_manifest, write_shard

CONFIG = """
trainer:
  init:
    model: {hidden_size: 16, num_hidden_layers: 1, num_heads: 2, filter_size: 32, vocab_size: 40,
            max_position_embeddings: 8}
    optimizer: {AdamW: {lr: 0.01}}
    sparsity: {algorithm: static, sparsity: 0.5, param_filter: '*linear_layer.weight'}
    loop: {max_steps: 1}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    write_shard(folder / "data/output_chunk_0_0.h5", examples(8))
    write_manifest(folder / "data", eos_id=0, msl=8)
    (folder / "c.yaml").write_text(CONFIG.replace("DATA", str(folder / "data")))
    assert run("CPU", "-p", folder / "c.yaml", "-m", "train", "-o", folder / "run") == 0
    assert run("export", folder / "run", folder / "s50") == 0
    return folder / "s50"


@pytest.fixture
def export(made, tmp_path, monkeypatch):
    """A copy of an export, in a process that cannot reach any network."""
    monkeypatch.setattr(socket, "socket", None)
    return shutil.copytree(made, tmp_path / "a b" / "s50")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command_is_whole_and_what_is_not_known_is_named(export, capsys):
    before = content(export)
    assert run("push", export, "--repo", "me/s50") == 0
    out = capsys.readouterr().out
    assert content(export) == before
    command = shlex.split(re.search(r"^ +(hf upload .*)$", out, re.MULTILINE)[1])
    assert command == ["hf", "upload", "me/s50", str(export), ".", "--private"]
    assert all(re.search(rf"^not known  {key}: .*--{key} ", out, re.MULTILINE) for key in ("license", "datasets"))
    assert f"{len(before)} files" in out


def test_hf_takes_the_command(export):
    """The words, by the parser of huggingface_hub's own command."""
    cli = pytest.importorskip("huggingface_hub.cli.upload", reason="huggingface_hub with `hf` is not installed")
    import inspect

    places = [n for n in inspect.signature(cli.upload).parameters][:3]
    assert places == ["repo_id", "local_path", "path_in_repo"] and "private" in inspect.signature(cli.upload).parameters


def test_what_is_given_is_in_the_card_as_the_hub_reads_it(export, capsys):
    flags = ("--license", "apache-2.0", "--datasets", "ncbi/pubmed", "me/x", "--base_model", "gpt2", "--language", "de")
    assert run("push", export, *flags) == 0
    check_checksums(str(export))
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    card = hub.ModelCard((export / "README.md").read_text(), ignore_metadata_errors=False)
    assert card.data.to_dict() == {
        "language": ["de"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["biomedical", "sparse", "mediswift"], "license": "apache-2.0",
        "datasets": ["ncbi/pubmed", "me/x"], "base_model": "gpt2",
    }  # fmt: skip
    assert card.text.lstrip().startswith("# s50") and "Not for clinical use" in card.text
    assert "not on record; run.py push" not in card.content
    before = content(export)
    capsys.readouterr()
    assert run("push", export, "--license", "apache-2.0") == 0
    assert content(export) == before and "not known" not in capsys.readouterr().out


def test_what_a_user_wrote_into_the_card_stays(export):
    text = (export / "README.md").read_text()
    mine = text.replace("language: en\n", "language: en\nmodel-index:\n- name: x\n") + "\nMine.\n"
    (export / "README.md").write_text(mine)
    (export / "checksums.json").unlink()
    assert run("push", export) == 2  # what was sealed is not known any more
    from modelzoo.checksums import write_checksums

    write_checksums(str(export))
    assert run("push", export, "--license", "mit") == 0
    found = (export / "README.md").read_text()
    assert "model-index:\n- name: x\n" in found and found.endswith("\nMine.\n") and "license: mit" in found


def test_what_is_not_of_the_export_is_named_and_stays_so(export, capsys):
    (export / "notes.txt").write_text("mine\n")
    (export / ".cache/huggingface").mkdir(parents=True)
    (export / ".cache/huggingface/x").write_text("token: CANARYCANARY\n")
    for _ in range(2):
        assert run("push", export, "--license", "mit") == 0
        assert "uploaded too: notes.txt\n" in capsys.readouterr().err
    assert "notes.txt" not in json.loads((export / "checksums.json").read_text())["files"]


def refuse(folder, capsys, words, *flags):
    before = content(folder) if folder.is_dir() else None
    capsys.readouterr()
    assert run("push", folder, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and words in error, error
    assert before is None or content(folder) == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "gone": (lambda e: (e / "model.safetensors").unlink(), "model.safetensors: is missing"),
    "changed": (lambda e: flip(e / "model.safetensors"), "SHA-256 differs"),
    "unsealed": (lambda e: (e / "checksums.json").unlink(), "has no checksums.json"),
    "no model": (lambda e: (e / "config.json").unlink(), "holds no config.json"),
    "link": (lambda e: os.symlink("/etc/hostname", e / "b"), "b: is a link"),
    "secret": (lambda e: (e / "a.txt").write_text("x\nwandb_api_key: 0123456789abcdef\n"), "a.txt:2: holds what looks"),
    "hidden": (lambda e: (e / ".env").write_text("HF_TOKEN=hf_0123456789abcdefghij\n"), ".env:1: holds what looks"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_must_not_be_uploaded_is_refused(name, export, capsys):
    change, words = DAMAGE[name]
    change(export)
    refuse(export, capsys, words)


def test_flags_that_the_hub_does_not_take_are_refused(export, tmp_path, capsys):
    for flags, words in (
        (("--repo", "s50"), "ORG/NAME"),
        (("--repo", "me/s50--x"), "ORG/NAME"),
        (("--repo", "me/a/b"), "ORG/NAME"),
        (("--license", "Apache 2.0"), "apache-2.0?"),
        (("--language", "English"), "language: 'English'"),
        (("--datasets", "my data"), "datasets: 'my data'"),
    ):
        refuse(export, capsys, words, *flags)
    refuse(tmp_path / "none", capsys, "no such folder")
    (tmp_path / "x.gguf").write_text("GGUF")
    refuse(tmp_path / "x.gguf", capsys, "is a file")


@pytest.mark.parametrize("header", ["---\ntags: x\n", "---\n- a\n---\n", "---\na: [\n---\n", "---\nlicense: 3\n---\n"])
def test_metadata_that_is_none_is_refused_with_its_file(header, export, capsys):
    from modelzoo.checksums import write_checksums

    write_text(str(export / "README.md"), header + "# x\n")
    write_checksums(str(export))
    refuse(export, capsys, "README.md")


def test_a_kill_between_two_files_leaves_an_export_that_is_whole(export, monkeypatch):
    """After each file that is written the folder passes its own check, and the same command finishes."""
    from modelzoo import checksums

    for fatal in range(3):
        folder = shutil.copytree(export, export.parent / f"copy{fatal}")
        written = []

        def write(path, text, durable=False, fatal=fatal, written=written):
            if len(written) == fatal:
                raise KeyboardInterrupt
            written.append(path)
            write_text(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(checksums, "write_text", write)
            assert run("push", folder, "--license", "mit") == 130
        check_checksums(str(folder))
        assert run("push", folder, "--license", "mit") == 0
        check_checksums(str(folder))
        assert "README.md" in json.loads((folder / "checksums.json").read_text())["files"]
        assert "license: mit" in (folder / "README.md").read_text()
