"""A checkpoint is whole or not there: every damage is found and named, every kill leaves a valid state."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo.config.errors import UserError
from modelzoo.files import write_text
from modelzoo.planning.start_checkpoint import find_checkpoint
from modelzoo.training.checkpoints import checkpoint, saving

REPO = Path(__file__).resolve().parents[3]


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    ramp = torch.arange(6, dtype=torch.float32).view(2, 3) + value
    return {
        "model": {"w": ramp, "w_mask": ramp > 2, "turned": ramp.t(), "nan": torch.tensor(float("nan"))},
        "optimizer": {"w/step": torch.tensor(value), "w/born": torch.arange(3, dtype=torch.int32)},
    }


def save(root, step, finite=True, keep=None):
    return saving.save(str(root), step, tensors(step), {"global_step": step, "finite": finite}, keep)


def whole(path, step, value=None) -> None:
    """`path` holds exactly what `save` wrote at `step`, or the tensors of another value."""
    files, state = checkpoint.load(path)
    assert state["global_step"] == step
    expected = tensors(step if value is None else value)
    assert files.keys() == expected.keys()
    for stem, part in expected.items():
        assert files[stem].keys() == part.keys()
        for name, x in part.items():
            got = files[stem][name]
            assert got.dtype == x.dtype and got.shape == x.shape
            assert got.numpy().tobytes() == x.contiguous().numpy().tobytes()


def test_round_trip_is_equal_bit_by_bit(tmp_path):
    path = save(tmp_path / "made" / "on the way", 7)
    assert path.endswith("step_7") and sorted(os.listdir(path)) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    whole(path, 7)


def test_no_pickle(tmp_path):
    path = Path(save(tmp_path, 1))
    for name in os.listdir(path):
        if name.endswith(".json"):
            json.loads((path / name).read_text())
        else:
            safetensors.torch.load_file(path / name)


def test_every_flipped_byte_is_found_and_its_file_named(tmp_path):
    path = Path(save(tmp_path, 3))
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for at in range(len(data)):
            for flip in (0x01, 0x10) if file.suffix == ".json" else (0x80,):
                file.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
                with pytest.raises(UserError) as e:
                    checkpoint.load(str(path))
                assert str(path) in str(e.value) and "\n" not in str(e.value)
                if file.name != "manifest.json":
                    assert str(file) in str(e.value)
        file.write_bytes(data)
    whole(str(path), 3)


def test_every_truncation_and_absence_is_found(tmp_path):
    path = Path(save(tmp_path, 3))
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for length in range(0, len(data), 7):
            file.write_bytes(data[:length])
            with pytest.raises(UserError, match=str(file)):
                checkpoint.verify(str(path))
        file.unlink()
        with pytest.raises(UserError, match=f"{file}: missing"):
            checkpoint.verify(str(path))
        file.write_bytes(data)
    whole(str(path), 3)


MANIFESTS = ["[]", "{}", "null", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {}}']


@pytest.mark.parametrize(
    "text", [*MANIFESTS, '{"format": 1, "files": {"state.json": 3}}', '{"format": 2, "files": {}}']
)
def test_manifests_that_say_something_else(tmp_path, text):
    path = save(tmp_path, 3)
    Path(path, "manifest.json").write_text(text)
    with pytest.raises(UserError, match="step_3"):
        checkpoint.verify(path)


def test_the_newest_valid_one_wins_and_the_damage_is_said(tmp_path):
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert checkpoint.newest(str(tmp_path)) == (str(tmp_path / "step_10"), [])
    (tmp_path / "step_10" / "state.json").write_text("{")
    shutil.rmtree(tmp_path / "step_9")
    (tmp_path / "step_9").mkdir()
    (tmp_path / "step_notanumber").mkdir()
    path, damaged = checkpoint.newest(str(tmp_path))
    assert path == str(tmp_path / "step_2")
    assert len(damaged) == 2 and "step_10/state.json" in damaged[0] and "step_9" in damaged[1]
    assert checkpoint.newest(str(tmp_path / "nothing")) == (None, [])


def test_a_missing_step_names_its_neighbours(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 10)
    with pytest.raises(UserError, match=r"step_7: no such checkpoint folder; there are steps 5, 10"):
        checkpoint.load(str(tmp_path / "step_7"))


# --- files that cannot be read ----------------------------------------------------------------------------------------


def unreadable(path: Path) -> None:
    path.chmod(0)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [unreadable, a_pipe, a_folder, a_loop])
def test_what_cannot_be_read_gives_way_to_the_one_before(damage, name, tmp_path):
    if damage is unreadable and os.geteuid() == 0:
        pytest.skip("root reads everything")
    save(tmp_path, 1)
    damage(Path(save(tmp_path, 2)) / name)
    path, (line,) = checkpoint.newest(str(tmp_path))
    assert path == str(tmp_path / "step_1") and f"step_2/{name}" in line and "\n" not in line


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("at", ["open", "read"])
def test_every_error_of_reading_is_damage(at, code, tmp_path, monkeypatch):
    """For each file of the newest checkpoint, at its opening and in the middle of it."""
    save(tmp_path, 1)
    newest = Path(save(tmp_path, 2))
    for file in sorted(newest.iterdir()):
        error = OSError(code, os.strerror(code), str(file))
        with monkeypatch.context() as m:
            if at == "open":
                plain = os.open

                def failing(path, *args, plain=plain, file=file, error=error, **kwargs):
                    if os.fspath(path) == str(file):
                        raise error
                    return plain(path, *args, **kwargs)

                m.setattr(os, "open", failing)
            else:
                from modelzoo import reading, records

                def bytes_of(path, *args, plain=reading.read_bytes, file=file, error=error):
                    if os.fspath(path) == str(file):
                        raise error
                    return plain(path, *args)

                def digest(opened, *args, plain=hashlib.file_digest, file=file, error=error):
                    if os.path.samestat(os.fstat(opened.fileno()), os.stat(file)):
                        raise error
                    return plain(opened, *args)

                m.setattr(records, "read_bytes", bytes_of)
                m.setattr(hashlib, "file_digest", digest)
            path, (line,) = checkpoint.newest(str(tmp_path))
        assert path == str(tmp_path / "step_1") and str(file) in line and os.strerror(code) in line


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", "", "nul\0"])
def test_a_manifest_names_nothing_outside_its_folder(name, tmp_path):
    path = Path(save(tmp_path, 3))
    (tmp_path / "outside").write_text("x")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json: names .* not in the checkpoint's folder"):
        checkpoint.load(str(path))


def test_a_checkpoint_that_is_a_link_is_replaced_and_its_target_stays(tmp_path):
    elsewhere = Path(save(tmp_path / "elsewhere", 2))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_2").symlink_to(elsewhere)
    save(tmp_path / "run", 2)
    assert sorted(os.listdir(tmp_path / "run")) == ["step_2"] and not (tmp_path / "run/step_2").is_symlink()
    whole(str(elsewhere), 2)


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_rotation_keeps_the_newest(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, keep=3)
    assert checkpoint.steps(str(tmp_path)) == [5, 6, 7]
    assert sorted(os.listdir(tmp_path)) == ["step_5", "step_6", "step_7"]


def test_rotation_never_takes_the_last_finite_one(tmp_path):
    for step, finite in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, step, finite, keep=2)
    assert checkpoint.steps(str(tmp_path)) == [2, 4, 5]
    save(tmp_path, 6, True, keep=2)
    assert checkpoint.steps(str(tmp_path)) == [5, 6]


def test_a_damaged_one_does_not_count_as_the_last_finite(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step_2" / "model.safetensors").write_bytes(b"")
    for step in (3, 4):
        save(tmp_path, step, False, keep=1)
    assert checkpoint.steps(str(tmp_path)) == [1, 4]
    whole(str(tmp_path / "step_1"), 1)


def test_rotation_passes_over_a_damaged_neighbour(tmp_path):
    """A folder without a readable state must not end the run that saves beside it."""
    save(tmp_path, 1)
    (tmp_path / "step_1" / "state.json").unlink()
    (tmp_path / "step_2").write_text("a file")
    for step in (3, 4):
        save(tmp_path, step, keep=1)
    whole(str(tmp_path / "step_4"), 4)


def test_a_damaged_newest_does_not_count_for_ever(tmp_path):
    """A run passes over it, goes back, and ends below it: it must not take the place of a whole one."""
    for step in (1, 2, 9):
        save(tmp_path, step)
    (tmp_path / "step_9/state.json").write_text("{")
    for step in (3, 4, 5):
        save(tmp_path, step, keep=2)
    assert checkpoint.steps(str(tmp_path)) == [4, 5, 9]
    assert checkpoint.newest(str(tmp_path))[0] == str(tmp_path / "step_5")
    for step in (10, 11):
        save(tmp_path, step, keep=2)
    assert checkpoint.steps(str(tmp_path)) == [10, 11]


def test_a_rotation_that_fails_ends_no_run(tmp_path, monkeypatch):
    save(tmp_path, 1)
    plain, calls = os.listdir, []

    def failing(path):
        calls.append(path)
        if len(calls) == 4:  # of the rotation: the two cleanings and the new checkpoint's own come first
            raise OSError(errno.EIO, "Input/output error", path)
        return plain(path)

    monkeypatch.setattr(os, "listdir", failing)
    save(tmp_path, 2, keep=1)
    assert len(calls) == 4
    monkeypatch.undo()
    assert checkpoint.steps(str(tmp_path)) == [1, 2]


def test_what_was_just_written_stays_among_later_steps(tmp_path):
    """A run that goes back to an earlier checkpoint writes steps below those that lie there."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 5, keep=2)
    assert checkpoint.steps(str(tmp_path)) == [5, 20, 30]


# --- kills and full disks ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: no `except Exception` sees it, and what comes after does not happen."""


def kill_at(monkeypatch, n: int) -> list:
    """Count renames, syncs, directory makings and removals; the n-th does not happen, nor anything after it."""
    done = []

    def guard(module, name):
        plain = getattr(module, name)

        def wrapped(*args, **kwargs):
            if len(done) >= n:
                raise Killed
            done.append((name, *map(str, args)))
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    for module, name in ((os, "rename"), (os, "fsync"), (os, "makedirs"), (os, "unlink"), (os, "rmdir"),
                         (safetensors.torch, "save_file"), (shutil, "rmtree")):  # fmt: skip
        guard(module, name)
    return done


@pytest.mark.parametrize("case", ["new", "same step", "rotating"])
def test_a_kill_between_any_two_operations_leaves_a_valid_state(tmp_path, case):
    n = 0
    while True:
        root = tmp_path / f"{case} {n}"
        before = {"new": [1], "same step": [1, 2], "rotating": [0, 1]}[case]
        for step in before:
            save(root, step)
        (root / ".tmp-step_9.1").mkdir()  # an earlier kill's
        keep = 1 if case == "rotating" else None
        with pytest.MonkeyPatch.context() as patch:
            done = kill_at(patch, n)
            try:
                saving.save(str(root), 2, tensors(2 if case != "same step" else 22), later(case), keep)
                finished = True
            except Killed:
                finished = False
        path, damaged = checkpoint.newest(str(root))
        assert damaged == []
        step = checkpoint.load(path)[1]["global_step"]
        held = checkpoint.load(path)[1].get("held", step)
        assert held in ({1, 2} if case != "same step" else {2, 22})  # what was newest before, or the new one
        whole(path, step, held)
        if finished:
            assert held == (22 if case == "same step" else 2)
        save(root, 3, keep=2)  # and the run that follows goes on and cleans up
        assert all(name.startswith("step_") and "." not in name for name in os.listdir(root))
        whole(str(root / "step_3"), 3)
        if finished:
            assert n == len(done) > 8
            return
        n += 1


def later(case) -> dict:
    return {"global_step": 2, "finite": True, "held": 22 if case == "same step" else 2}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_is_one_line_and_the_last_good_one_stays(tmp_path, monkeypatch, code, at):
    save(tmp_path, 1)
    calls, plain = [], safetensors.torch.save_file

    def full(part, path):
        calls.append(path)
        if len(calls) == at:
            Path(path).write_bytes(b"half")
            raise OSError(code, os.strerror(code))
        plain(part, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError) as e:
        save(tmp_path, 2)
    message = str(e.value)
    assert "step_2: checkpoint not written: the disk is full" in message and "\n" not in message
    assert f"the last good one is {tmp_path / 'step_1'}" in message and "free some space" in message
    assert os.listdir(tmp_path) == ["step_1"]
    whole(str(tmp_path / "step_1"), 1)


@pytest.mark.parametrize("limit", [100, 20_000, 140_000])
def test_a_real_write_limit(tmp_path, limit):
    """RLIMIT_FSIZE in a process of its own: the kernel refuses the write in the middle of a file."""
    script = f"""
import resource, sys, torch
sys.path.insert(0, {str(REPO)!r})
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints import checkpoint
from modelzoo.config.errors import UserError
files = {{"model": {{"w": torch.zeros(30_000)}}, "optimizer": {{"w/step": torch.zeros(40_000)}}}}
saving.save({str(tmp_path)!r}, 1, files, {{"global_step": 1, "finite": True}}, None)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    saving.save({str(tmp_path)!r}, 2, files, {{"global_step": 2, "finite": True}}, None)
except UserError as e:
    print(e)
    sys.exit(2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "" and done.stdout.count("\n") == 1
    assert "the disk is full" in done.stdout and "the last good one is" in done.stdout
    assert os.listdir(tmp_path) == ["step_1"]
    checkpoint.verify(str(tmp_path / "step_1"))


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_a_root_that_cannot_be(tmp_path, name):
    (tmp_path / "a file").write_text("")
    with pytest.raises(UserError, match="checkpoint not written"):
        save(tmp_path / name, 1)
    assert checkpoint.newest(str(tmp_path / name)) == (None, [])


def test_a_small_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_text(str(path), "first")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        write_text(str(path), "second")
    assert path.read_text() == "first"


@pytest.mark.parametrize("damage", ["link", "manifest", "file"])
def test_an_older_checkpoint_is_taken_with_a_word(damage, tmp_path, capsys):
    """As export, score and every other reader of a run folder take it."""
    old, new = (Path(save(tmp_path / "checkpoints", step)) for step in (4, 6))
    assert find_checkpoint(str(tmp_path)) == str(new) and capsys.readouterr().err == ""
    if damage == "manifest":
        (new / "manifest.json").write_text("{")
    else:
        shutil.rmtree(new)
        new.symlink_to(new.name) if damage == "link" else new.touch()
    assert find_checkpoint(str(tmp_path)) == str(old)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"damaged    {new}") and line.endswith("; taking the one before")


def test_a_pipe_in_the_place_of_a_checkpoint_holds_nothing_up(tmp_path):
    old = save(tmp_path, 4)
    os.mkfifo(tmp_path / "step_6")
    assert checkpoint.newest(str(tmp_path))[0] == old
    whole(save(tmp_path, 6, keep=2), 6)
    assert checkpoint.newest(str(tmp_path)) == (str(tmp_path / "step_6"), [])


def test_every_whole_checkpoint_is_listed_and_each_other_one_named(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step_2" / "state.json").write_text("{}")
    found, damaged = checkpoint.whole(str(tmp_path))
    assert found == [str(tmp_path / f"step_{n}") for n in (1, 3)]
    assert len(damaged) == 1 and damaged[0].startswith(str(tmp_path / "step_2" / "state.json"))


def test_a_folder_that_is_named_after_another_step_is_none_of_the_run(tmp_path):
    """A copy under a higher name counted as the newest: the run went back to it, and rotated away what it had done."""
    for step in (2, 4):
        save(tmp_path, step)
    shutil.copytree(tmp_path / "step_4", tmp_path / "step_1000")
    path, damaged = checkpoint.newest(str(tmp_path))
    assert path == str(tmp_path / "step_4")
    assert damaged == [f"{tmp_path}/step_1000: holds step 4, which its name does not say; rename it to step_4"]
    assert checkpoint.whole(str(tmp_path)) == ([str(tmp_path / f"step_{s}") for s in (2, 4)], damaged)
    save(tmp_path, 6, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step_1000", "step_4", "step_6"]
    assert find_checkpoint(str(tmp_path / "step_1000")) == str(tmp_path / "step_1000")  # named by hand, it is taken
