"""The list of an export's files: whatever changes in the folder is named, and a folder without one is as it is."""

import json
import os
from pathlib import Path
from random import Random

import pytest

from modelzoo.checksums import NAME, check_checksums, write_checksums
from modelzoo.config.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, data in {"config.json": b"{}", "a.bin": bytes(range(256)), "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "inner").mkdir()
    write_checksums(str(tmp_path))
    return tmp_path


def test_every_flipped_bit_is_refused_and_names_its_file(folder):
    check_checksums(str(folder))
    draw = Random(1)
    for path in [p for p in folder.iterdir() if p.is_file() and p.stat().st_size]:
        whole = path.read_bytes()
        for bit in draw.sample(range(8 * len(whole)), min(8 * len(whole), 100)):
            path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :])
            try:
                check_checksums(str(folder))
            except UserError as e:
                assert str(e).startswith(str(folder)) and "\n" not in str(e)
                assert path.name == NAME or str(e).startswith(str(path)) and f"remove {NAME}" in str(e)
            else:  # white space, or a letter of a key that JSON writes in two ways
                assert path.name == NAME and json.loads(path.read_text()) == json.loads(whole)
        path.write_bytes(whole)


def test_missing_cut_and_odd_files_are_refused_and_others_pass(folder):
    (folder / "photo.png").write_bytes(b"of the user")
    check_checksums(str(folder))
    (folder / "a.bin").write_bytes(bytes(range(255)))
    with pytest.raises(UserError, match=r"a\.bin: has 255 bytes where 256 were exported"):
        check_checksums(str(folder))
    (folder / "a.bin").unlink()
    with pytest.raises(UserError, match=r"a\.bin: is missing"):
        check_checksums(str(folder))
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "a.bin")
        with pytest.raises(UserError, match="is not a regular file"):
            check_checksums(str(folder))
    (folder / NAME).unlink()
    check_checksums(str(folder))


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "inner/x", "..", ""])
def test_a_list_names_files_of_its_own_folder_alone(folder, name):
    found = json.loads((folder / NAME).read_text())
    found["files"][name] = found["files"]["empty"]
    (folder / NAME).write_text(json.dumps(found))
    with pytest.raises(UserError, match="is no file of this folder"):
        check_checksums(str(folder))


@pytest.mark.parametrize("change", [{"format": 2}, {"format": True}, {"files": []}, {"files": None}, {"more": 1}])
def test_a_list_of_another_form_is_refused(folder, change):
    found = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**found, **change}))
    with pytest.raises(UserError, match="is not what an export writes"):
        check_checksums(str(folder))


def test_a_file_that_cannot_be_looked_at_is_not_left_out(folder):
    (folder / "model").symlink_to("model")  # a loop
    with pytest.raises(OSError, match="model"):
        write_checksums(str(folder))
