"""Logs on resume: cut back to the checkpoint, exact where they are as written, else named and survived."""

import errno
import json
import os
import re
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modelzoo.training.checkpoints.state_json import LogFacts
from modelzoo.training.logs import tensorboard
from modelzoo.training.logs.cutting import cut_back
from modelzoo.training.logs.launches import read_launches
from modelzoo.training.logs.lines import read_records
from modelzoo.training.logs.tensorboard import Events
from modelzoo.training.logs.writing import LogError, Logs
from modelzoo.training.runs.folder import RunFolder
from tests.support import examples, write_shard
from tests.training.test_promises import run, write_config


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shard(tmp_path_factory.mktemp("data") / "a.h5", examples(19, seed=1)).parent


@pytest.fixture
def params(data, tmp_path) -> Path:
    return write_config(tmp_path / "config.yaml", data)


def flip(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text[:20] + bytes([text[20] ^ 1]) + text[21:])


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("")


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


DAMAGES = {
    "a flipped bit": flip,
    "no UTF-8": lambda p: p.write_bytes(b"\xff\xfe\n" + p.read_bytes()),
    "another record": lambda p: p.write_bytes(b'["no", "record"]\n{"step": "three"}\n' + p.read_bytes()),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:30]),
    "empty": lambda p: p.write_bytes(b""),
    "gone": lambda p: p.unlink(),
    "a folder": put_folder,
    "a pipe": put_fifo,
    "a link": put_link,
}


@pytest.mark.parametrize("name", ["metrics", "timing"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_log_is_named_and_ends_no_run(damage, name, params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder, "--max_steps", 3) == 0
    log = folder / f"{name}.jsonl"
    DAMAGES[damage](log)
    elsewhere = (folder / "elsewhere").read_bytes() if damage == "a link" else None
    capsys.readouterr()
    assert run(params, folder, "--max_steps", 5) == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("damaged    ")]
    assert str(log) in line
    assert [r["step"] for r in read_records(str(log)).records][-2:] == [4, 5]
    if damage != "gone":
        assert (folder / f"{name}.jsonl.set_aside_1").exists()  # what it was is not lost
    if elsewhere is not None:
        assert (folder / "elsewhere").read_bytes() == elsewhere  # and nothing was written through


def test_what_follows_the_checkpoint_is_cut_without_a_word(params, tmp_path, capsys):
    """A kill after the checkpoint: the log went on, in whole lines, in half a line, in anything."""
    folder = tmp_path / "run"
    assert run(params, folder, "--max_steps", 3) == 0
    before = {n: (folder / f"{n}.jsonl").read_bytes() for n in ("metrics", "timing")}
    for number, more in enumerate((b'{"step": 4, "kind": "train"}\n', b'{"step": 4, "ki', b"\xff\n\0")):
        for name, text in before.items():
            (folder / f"{name}.jsonl").write_bytes(text + more)
        config = RunFolder(str(folder))
        state = json.loads((folder / "checkpoints/step_3/state.json").read_text())
        facts = {n: LogFacts(**of) for n, of in state["logs"].items()}
        assert cut_back(config, 3, facts) == [], number
        assert {n: (folder / f"{n}.jsonl").read_bytes() for n in before} == before


def test_an_older_checkpoints_log_is_cut_by_its_records(tmp_path):
    folder = RunFolder(str(tmp_path))
    with open(folder.metrics, "w") as file:
        file.write(
            "".join(json.dumps({"step": s, "kind": "train", "loss": 0.1 * s}) + "\n" for s in range(1, 6)) + '{"st'
        )
    assert cut_back(folder, 3, {}) == []
    assert [r["step"] for r in read_records(folder.metrics).records] == [1, 2, 3]
    assert cut_back(folder, 0, {}) == [] and read_records(folder.metrics).records == []


def test_a_reader_names_the_line_that_is_no_record(tmp_path):
    """Whoever reads a log, the first line that is none is named with its reason, and all such lines are counted."""
    path, good = tmp_path / "metrics.jsonl", '{"step": 1, "kind": "train", "loss": NaN}\n'
    for line, named in (('{"step": -1, "kind": "x"}', "step"), ('{"step": 2}', "kind"), ("{", "Expecting"),
                        ('{"step": 2, "kind": "train", "loss": "low"}', "loss"), ("\xff", "utf-8"), ("", "Expecting"),
                        ('{"step": 2, "kind": "train", "step": 3}', "'step' twice")):  # fmt: skip
        path.write_text(good + line + "\n" + good, encoding="latin-1")
        log = read_records(str(path))
        assert len(log.records) == 2 and re.fullmatch(rf"note .*metrics.jsonl:2: .*{named}.*it is left out", log.note)
        path.write_text((line + "\n") * 3 + good, encoding="latin-1")
        assert re.match(r"note .*metrics.jsonl:1: .*; 3 such lines are left out", read_records(str(path)).note)
        path.write_text(good + line, encoding="latin-1")  # what a kill leaves at the end is no fault
        assert read_records(str(path)).note is None and len(read_records(str(path)).records) == 1
    path.write_bytes(b"x" * (3 << 20) + b"\n" + good.encode())  # one line, however long
    log = read_records(str(path))
    assert len(log.records) == 1 and "metrics.jsonl:1: " in log.note and "it is left out" in log.note


def test_launches_survive_what_is_no_launch_and_name_it_once(params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder, "--max_steps", 2) == 0
    path = folder / "launches.jsonl"
    was = b"\xff\n[]\n" + path.read_bytes() + b'{"comm'  # half a line, as a kill leaves it
    path.write_bytes(was)
    capsys.readouterr()
    assert run(params, folder, "--max_steps", 3) == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "launches.jsonl" in x]
    assert re.fullmatch(
        r"damaged .*launches.jsonl:1: is no launch of a run \(.*utf-8.*\); 2 such lines are left out; it is "
        r".*launches.jsonl.set_aside_1 now, and the log goes on with the records that are whole", line
    )  # fmt: skip
    assert (folder / "launches.jsonl.set_aside_1").read_bytes() == was
    found = read_launches(RunFolder(str(folder)))
    assert [x["from_step"] for x in found.records] == [0, 2] and len({x["run"] for x in found.records}) == 1
    path.write_bytes(path.read_bytes() + b'{"comm')  # alone it is no fault, and the next line is on a line of its own
    assert run(params, folder, "--max_steps", 4) == run(params, folder, "--max_steps", 5) == 0
    assert "launches.jsonl" not in capsys.readouterr().err and not (folder / "launches.jsonl.set_aside_2").exists()
    found = read_launches(RunFolder(str(folder)))
    assert [x["from_step"] for x in found.records] == [0, 2, 3, 4] and found.note is None


@pytest.mark.parametrize("put", [put_folder, put_fifo])
def test_what_is_no_file_takes_no_launchs_place(put, params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder, "--max_steps", 2) == 0
    put(folder / "launches.jsonl")
    assert (
        run(params, folder, "--max_steps", 3) == 0 and "launches.jsonl: is no file; it is " in capsys.readouterr().err
    )
    assert [x["from_step"] for x in read_launches(RunFolder(str(folder))).records] == [2]


@pytest.mark.parametrize("name", ["metrics.jsonl", "launches.jsonl", "config.yaml"])
def test_links_are_not_written_through(name, params, tmp_path):
    target, folder = tmp_path / "precious", tmp_path / "run"
    target.write_text("precious")
    folder.mkdir()
    (folder / name).symlink_to(target)
    if name == "config.yaml":
        (folder / name).unlink()
        assert run(params, folder, "--max_steps", 2) == 0
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    assert run(params, folder, "--max_steps", 3) == 0
    assert target.read_text() == "precious" and (folder / name).is_file() and not (folder / name).is_symlink()


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[int, float]:
    """Step: loss, as TensorBoard itself reads them."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return {e.step: e.value for e in found.Scalars("train/loss")}


@pytest.mark.parametrize("back", [0, 3600, 10**7])
def test_tensorboard_shows_all_steps_though_the_clock_went_back(back, tmp_path, monkeypatch):
    first = Events(str(tmp_path), 0)
    for step in range(1, 6):
        first.write(step, {"train/loss": float(step)})
    first.close()
    now = time.time()
    monkeypatch.setattr(tensorboard.time, "time", lambda: now - back)
    again = Events(str(tmp_path), 3)
    for step in range(4, 8):
        again.write(step, {"train/loss": float(10 * step)})
    again.close()
    assert scalars(tmp_path) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0, 6: 60.0, 7: 70.0}


@pytest.mark.parametrize("when", ["at the start", "on the way", "removed"])
def test_tensorboard_that_cannot_write_ends_no_run(when, data, tmp_path, monkeypatch, capsys):
    params = write_config(tmp_path / "c.yaml", data, loggers=["TensorBoardLogger"])
    folder, plain = tmp_path / "run", Events.write

    def write(self, step, values):
        if when == "removed" and step == 3:
            os.remove(self._file.name)
        if when == "on the way" and step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, step, values)

    monkeypatch.setattr(Events, "write", write)
    if when == "at the start":
        folder.mkdir()
        (folder / "tensorboard").write_text("a file")
    assert run(params, folder) == 0
    said = [x for x in capsys.readouterr().err.splitlines() if "TensorBoard" in x]
    assert len(said) == 1 and "metrics.jsonl has all records" in said[0]
    assert [r["step"] for r in read_records(str(folder / "metrics.jsonl")).records] == [1, 2, 3, 4]


def test_logs_that_cannot_be_opened_are_one_line(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(LogError, match=r"run/metrics.jsonl: cannot be written \(") as e:
        Logs(RunFolder(str(tmp_path / "run")), 0, None)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_log_that_cannot_be_seen_is_not_taken_for_a_missing_one(code, tmp_path, monkeypatch):
    """A network mount that fails for a moment: nothing is written over what is there."""
    folder = RunFolder(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    plain = os.lstat

    def failing(path, *args, **kwargs):
        if str(path) == folder.metrics:
            raise OSError(code, os.strerror(code), path)
        return plain(path, *args, **kwargs)

    facts = LogFacts(bytes=29, sha256="")
    with monkeypatch.context() as m:
        m.setattr(os, "lstat", failing)
        with pytest.raises(OSError, match=os.strerror(code)):
            cut_back(folder, 1, {"metrics.jsonl": facts})
    assert os.listdir(tmp_path) == ["metrics.jsonl"] and len(read_records(folder.metrics).records) == 1
