"""A folder's list of its files with size and SHA-256, so that what changed on the way to a reader is refused.

Exports have one. Hugging Face, PEFT and lm-eval pass over it. A folder of others has none, and nothing is checked.
"""

import os
import stat
from typing import Annotated

from pydantic import ConfigDict, Field

from modelzoo.config.errors import UserError
from modelzoo.files import measure_file, write_text
from modelzoo.reading import exists
from modelzoo.records import Record, is_inside, read_record

NAME = "checksums.json"
_REMEDY = f"export it again or, if it was changed on purpose, remove {NAME}"


class _File(Record):
    model_config = ConfigDict(extra="forbid")

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _List(Record):
    model_config = ConfigDict(extra="forbid")

    format: Annotated[int, Field(ge=1, le=1)]
    files: dict[str, _File]


def write_checksums(folder: str) -> None:
    """Write `checksums.json` of the files now in `folder`; folders within it have their own.

    Raises:
        OSError: a file cannot be read, or the list not written.
    """
    found = {n: os.stat(os.path.join(folder, n)) for n in sorted(os.listdir(folder)) if n != NAME}
    files = {
        n: _File(**measure_file(os.path.join(folder, n))._asdict())
        for n, facts in found.items()
        if stat.S_ISREG(facts.st_mode)  # os.path.isfile would leave out a file that cannot be looked at
    }
    _write(folder, files)


def write_sealed(folder: str, name: str, text: str) -> None:
    """Replace a file of `folder` and its entry in the list. A kill in between leaves a list that does not name it.

    Raises:
        UserError: the list is damaged.
        OSError: one of both cannot be written.
    """
    others = {n: x for n, x in _read(folder).items() if n != name}
    _write(folder, others)
    write_text(os.path.join(folder, name), text, durable=True)
    measure = _File(**measure_file(os.path.join(folder, name))._asdict())
    _write(folder, dict(sorted([*others.items(), (name, measure)])))


def _write(folder: str, files: dict[str, _File]) -> None:
    write_text(os.path.join(folder, NAME), _List(format=1, files=files).model_dump_json(indent=1) + "\n")


def _read(folder: str) -> dict[str, _File]:
    return read_record(os.path.join(folder, NAME), _List, "missing", f"is not what an export writes; {_REMEDY}").files


def list_sealed(folder: str) -> set[str]:
    """The names in the folder's list, and its own.

    Raises:
        UserError: there is no list, or it is damaged.
    """
    return {NAME, *_read(folder)}


def check_checksums(folder: str) -> None:
    """Check the files of `folder` against its `checksums.json`; without one there is nothing to check.

    Raises:
        UserError: a file that is missing, cut short or changed, or the list itself is damaged.
    """
    path = os.path.join(folder, NAME)
    if not exists(path):
        return
    for name, expected in _read(folder).items():
        if not is_inside(name):
            raise UserError(f"{path}: files.{name[:80]!a}: is no file of this folder; {_REMEDY}")
        if problem := _find_change(os.path.join(folder, name), expected):
            raise UserError(f"{os.path.join(folder, name)}: {problem}; {_REMEDY}")


def _find_change(path: str, expected: _File) -> str | None:
    try:
        found = measure_file(path)
    except FileNotFoundError:
        return f"is missing, yet {NAME} names it"
    except OSError as e:
        return f"cannot be read ({e.strerror})"
    if found.bytes != expected.bytes:
        return f"has {found.bytes:,} bytes where {expected.bytes:,} were exported"
    if found.sha256 != expected.sha256:
        return f"its SHA-256 differs from that in {NAME}: it was changed after it was exported"
    return None
