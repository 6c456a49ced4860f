"""Files that are not what they seem are refused at once: pipes, devices, giants, JSON that is none."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo import reading, records
from modelzoo.config.errors import UserError


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="is not a regular file") as e:
        reading.open_regular(tmp_path / "a")
    assert e.value.filename == str(tmp_path / "a")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="the system has no /dev/zero")
def test_a_device_a_folder_and_a_giant_are_refused(tmp_path):
    with pytest.raises(OSError, match="is not a regular file"):
        reading.read_bytes("/dev/zero")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        reading.read_bytes(tmp_path)
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2**40)  # sparse: no byte is stored
    with pytest.raises(OSError, match="1,099,511,627,776 bytes; at most 100 "):
        reading.open_regular(tmp_path / "a", 100)
    with pytest.raises(FileNotFoundError):
        reading.read_text(tmp_path / "none")


def test_a_number_is_what_int_takes():
    assert all(reading.is_number(x) for x in ("0", "007", "9" * 18)) and reading.is_number("9" * 30, 30)
    assert not any(map(reading.is_number, ("", "-1", "+1", " 1", "1_0", "²", "١", "9" * 19, "9" * 5000)))


def test_an_error_of_an_open_file_names_it_too(tmp_path, monkeypatch):
    def fail(fd):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_bytes(b"x")
    with monkeypatch.context() as patch, pytest.raises(PermissionError) as error:
        patch.setattr(os, "fstat", fail)
        reading.open_regular(tmp_path / "file")
    assert error.value.filename == str(tmp_path / "file")


def test_no_descriptor_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(20):
        with pytest.raises(OSError):
            reading.open_regular(tmp_path)
    assert not before or len(os.listdir("/proc/self/fd")) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
)  # fmt: skip


@given(JSON)
def test_json_is_read_as_the_library_reads_it(value):
    assert reading.parse_json(json.dumps(value)) == value
    assert reading.parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("text,reason", [
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"), ("[" * 300 + "]" * 300, "nested too deeply"),
    ('{"a": 1, "b": 2, "a": 3}', "gives the key 'a' twice"), ("[NaN]", "holds NaN"), ("-Infinity", "holds -Infinity"),
    (r'"\ud800"', "half a surrogate pair"), (r'{"\udfff": 1}', "half a surrogate pair"), ("", "Expecting value"),
    ("1" * 5000, "digits"), ("{", "Expecting"), (b"\xff", "utf-8"), ("[1] 2", "Extra data"),
])  # fmt: skip
def test_what_is_no_json_is_a_value_error_of_one_line(text, reason):
    with pytest.raises(ValueError, match=reason) as e:
        reading.parse_json(text)
    assert "\n" not in str(e.value) and len(str(e.value)) < 200


class State(records.Record):
    step: int
    names: dict[str, list[float]]
    note: str | None = None


@pytest.mark.parametrize("text,line", [
    ('{"step": 3, "names": {"a": [1.5]}}', None),
    ('{"step": 3, "names": {}, "more": 1}', None),
    ('{"step": true, "names": {}}', "step: input should be a valid integer; is not a state"),
    ('{"step": 3.0, "names": {}}', "step: input should be a valid integer; is not a state"),
    ('{"names": {}}', "step: is missing; is not a state"),
    ('{"step": 3, "names": {"a": [1, "b"]}}', "names.a.1: input should be a valid number; is not a state"),
    ("[]", "input should be a valid dictionary or instance of State; is not a state"),
    ("{", "is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ("\udcff", "is not UTF-8 text (byte 0)"),
])  # fmt: skip
def test_a_record_names_the_file_and_the_key(text, line, tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    if line is None:
        assert records.read_record(str(path), State, "missing", "is not a state").step == 3
        return
    with pytest.raises(UserError) as e:
        records.read_record(str(path), State, "missing", "is not a state")
    assert str(e.value) == f"{path}: {line}"


def test_a_missing_record_says_so(tmp_path):
    with pytest.raises(UserError, match="x: not here"):
        records.read_record(str(tmp_path / "x"), State, "not here", "")
    with pytest.raises(UserError, match="cannot be read"):
        records.read_record(str(tmp_path), State, "not here", "")


@pytest.mark.parametrize("name", ["a.h5", "a b", "..a", "a..", "é"])
def test_a_plain_name_is_inside(name):
    assert records.is_inside(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a/", "a\0", "./a"])
def test_a_path_is_not_inside(name):
    assert not records.is_inside(name)


def test_undefined_numbers_are_null_where_older_results_hold_them():
    assert reading.parse_json('{"a": [NaN, -Infinity, 1.5]}', undefined=True) == {"a": [None, None, 1.5]}


def test_nonfinite_numbers_are_taken_where_asked_for():
    assert reading.parse_json('{"a": [Infinity, -Infinity, 1]}', nonfinite=True) == {
        "a": [float("inf"), -float("inf"), 1]
    }


def test_a_key_of_others_stays_on_its_line():
    class Sizes(records.Record):
        sizes: dict[str, int]

    with pytest.raises(UserError) as e:
        records.check_record({"sizes": {"a\n\x1b[31mb" + "c" * 500: "x"}}, Sizes, "f.json", "is none")
    assert str(e.value).isprintable() and len(str(e.value)) < 200 and str(e.value).startswith("f.json: sizes.")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the system has no links")
def test_what_cannot_be_looked_at_is_not_taken_for_absent(tmp_path):
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "link")
    (tmp_path / "file").write_text("")
    assert reading.exists(tmp_path / "file") and reading.exists(tmp_path / "link")
    assert not reading.exists(tmp_path / "gone") and not reading.exists(tmp_path / "file" / "inside")
    with pytest.raises(OSError) as e:  # os.path.exists says that there is none
        reading.exists(tmp_path / "loop" / "manifest.json")
    assert e.value.filename == str(tmp_path / "loop" / "manifest.json") and not os.path.exists(e.value.filename)
