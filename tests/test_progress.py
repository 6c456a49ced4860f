"""The live line: one that is rewritten on a terminal, few lines in a file, in training, preprocessing and studies."""

import io
import re
from types import SimpleNamespace

import pytest

from data_preprocessing.jobs.progress import printer
from modelzoo import progress
from modelzoo.progress import format_amount, format_size
from modelzoo.study.execution.progress import Progress as StudyProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    now = [3.0]  # a machine that has just started: its clock is near zero
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(text: str) -> list[str]:
    """The lines that a terminal shows after `text`, which rewrites them."""
    return [re.split(r"\r\x1b\[2K", line)[-1] for line in text.split("\n")]


def training(out, clock):
    line = progress.Progress(40, out)
    for step in range(1, 41):
        clock[0] += 6
        line.update(step, "loss 1")
        if step == 20:
            line.note("saved")
    line.close()


def preprocessing(out, clock):
    show = printer(out)
    for step in ("extract", "encode"):
        for done in range(41):
            clock[0] += 6
            show(step, done, 40, {"records": 2} if done else {})


def study(out, clock):
    cell = SimpleNamespace(name="a", dense=1.0, steps=40)
    line = StudyProgress(2.0)
    line.out, line.live, line.every = out, out.isatty(), 1.0 if out.isatty() else line.every
    for name in "ab":
        cell.name = name
        for step in range(1, 41):
            clock[0] += 6
            line.update(cell, step)
        line.ended(cell, 2.5)


def test_a_run_that_another_process_is_at_leaves_the_time_left_as_it_is(clock):
    """Half of the second run, its only one, took 120 s: 120 are left."""
    out = Terminal()
    line = StudyProgress(2.0)
    line.out, line.live = out, True
    busy, own = (SimpleNamespace(name=name, dense=1.0, steps=40) for name in ("busy", "own"))
    line.update(busy, 30)
    line.passed(busy, "busy")
    line.update(own, 0)
    clock[0] += 120
    line.update(own, 20)
    assert shown(out.getvalue())[-1].endswith("own  step 20/40  left 2:00")


USERS = {"training": training, "preprocessing": preprocessing, "study": study}
LAST = {"training": "step 40/40  loss 1", "preprocessing": r"encode +40/40 .*", "study": "100%  b  40 steps in .*"}


@pytest.mark.parametrize("name", USERS)
def test_a_terminal_shows_one_line_for_each_thing_and_ends_on_a_new_one(name, clock):
    out = Terminal()
    USERS[name](out, clock)
    *lines, end = shown(out.getvalue())
    assert end == "" and re.fullmatch(LAST[name], lines[-1])
    assert len(lines) == 2  # a note and the line; two steps; two runs
    assert out.getvalue().count("\r") > 70 * (name != "training")


@pytest.mark.parametrize("name", USERS)
def test_a_file_gets_a_line_at_once_then_one_a_minute_and_the_last(name, clock):
    out = io.StringIO()
    USERS[name](out, clock)
    lines = out.getvalue().splitlines()
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue() and out.getvalue().endswith("\n")
    assert re.fullmatch(LAST[name], lines[-1])
    each = 1 if name == "training" else 2
    assert 4 * each <= len(lines) <= 7 * each


def test_the_time_left_is_that_of_the_steps_since_the_first(clock):
    out = Terminal()
    line = progress.Progress(100, out)
    line.update(10, "x")
    clock[0] += 30
    line.update(20, "x")
    assert shown(out.getvalue()) == ["step 20/100  x  left 4:00"]


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_a_terminal_that_is_a_log_is_not_rewritten(name, value, clock, monkeypatch):
    monkeypatch.setenv(name, value)
    out = Terminal()
    training(out, clock)
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue() and len(out.getvalue().splitlines()) <= 7


def test_amounts_round_into_the_next_unit():
    shown = {
        0: "0",
        999.4: "999",
        999.6: "1k",
        12345: "12.3k",
        999_499: "999k",
        999_999: "1M",
        2.5e15: "2.5P",
        3e21: "3e+03E",
    }
    assert [format_amount(x) for x in shown] == list(shown.values())
    assert format_size(2**30 - 1) == "1.00 GiB" and format_size(3 * 2**29) == "1.50 GiB"
