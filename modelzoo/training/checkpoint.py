"""Checkpoints that are whole or not there: safetensors + JSON in a step folder, checked by SHA-256, renamed into place.

    <root>/step_300/  model.safetensors  optimizer.safetensors  state.json  manifest.json
                      explored.safetensors, where masks change; orders.safetensors, where inputs are permuted

A checkpoint is written under a temporary name, read back, flushed to disk and renamed; a kill at any moment leaves the
previous one. No pickle is read or written. Tensors are named by parameter, so nothing depends on an order.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Annotated, Any

import safetensors
import safetensors.torch
from pydantic import ConfigDict, Field
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.files import apply_umask, measure_file, sync
from modelzoo.reading import look
from modelzoo.records import Record, check_record, is_inside, read_json, read_record

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
_STEP = re.compile(r"step_([0-9]+)(\.replaced)?$")
_TEMPORARY, _REPLACED = ".tmp-", ".replaced"
_MISSING = "missing; not a checkpoint of this trainer, or an unfinished one"
_OTHER = "is not what this trainer writes; it was changed"


class NotWritten(UserError):
    """A checkpoint cannot be written; what was there before is as it was."""


class FileFacts(Record):
    """What the manifest holds of a file."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    bytes: Annotated[int, Field(ge=0)]


class Manifest(Record):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid")

    format: int
    files: dict[str, FileFacts]


class SavedState(Record):
    """What every reader needs of state.json; `checkpoint_state.CheckpointState` is all of it."""

    global_step: Annotated[int, Field(ge=0)]
    finite: bool


def save(
    root: str,
    step: int,
    files: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int | None,
    placing: AbstractContextManager | None = None,
) -> str:
    """Write `<root>/step_<step>` and remove the oldest beyond `keep` (the last finite one always stays).

    Args:
        files: tensors by file stem, then by name.
        state: JSON values; `state["finite"]` says whether every weight is finite.
        keep: how many to keep; None keeps all.
        placing: is entered to put what is written in its place, and may refuse that by what it raises.

    Raises:
        NotWritten: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    target, temporary = _folder(root, step), os.path.join(root, f"{_TEMPORARY}step_{step}.{os.getpid()}")
    try:
        os.makedirs(root, exist_ok=True)
        clean(root)
        os.makedirs(temporary)
        for stem, tensors in files.items():
            # contiguous copies on the CPU: safetensors writes bytes as they are in memory
            path = os.path.join(temporary, f"{stem}.safetensors")
            # read by name: a loop's variable would keep the last one on its device while the next is made
            safetensors.torch.save_file({n: tensors[n].detach().cpu().contiguous() for n in tensors}, path)
            apply_umask(path)
        _write_json(os.path.join(temporary, STATE), state)
        names = sorted(os.listdir(temporary))
        found = {n: measure_file(os.path.join(temporary, n)) for n in names}
        sums = {n: {"sha256": x.sha256, "bytes": x.bytes} for n, x in found.items()}
        _write_json(os.path.join(temporary, MANIFEST), {"format": FORMAT, "files": sums})
        for name in (*names, MANIFEST):
            sync(os.path.join(temporary, name))
        sync(temporary)
        with placing or contextlib.nullcontext():
            if os.path.lexists(target):  # the same step again: folders cannot be exchanged in one rename, so the old
                os.rename(target, target + _REPLACED)  # one stays readable under its second name until the new is there
            os.rename(temporary, target)
            sync(root)
            clean(root)
    except (OSError, safetensors.SafetensorError) as e:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
        full = (
            getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            or "No space" in str(e)
            or "too large" in str(e)
        )
        reason = "the disk is full" if full else " ".join(str(e).split())
        last = None
        with contextlib.suppress(OSError):
            last = newest(root)[0]
        raise NotWritten(
            f"{target}: checkpoint not written: {reason}; "
            + (f"the last good one is {last}" if last else "there is no earlier one")
            + ("; free some space and run the same command again" if full else "")
        ) from None
    if keep is not None:
        with contextlib.suppress(OSError):  # what cannot be removed now is removed at a later save
            _rotate(root, keep, step, bool(state.get("finite")))
    return target


def prepare(root: str) -> None:
    """Make the folder of a run's checkpoints, and clear what killed runs left in it.

    Raises:
        UserError: it cannot be made or written: better before the first step than after the first hour.
    """
    try:
        os.makedirs(root, exist_ok=True)
        clean(root)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root)
    except OSError as e:
        raise UserError(f"{root}: cannot hold checkpoints ({e.strerror}); give another -o") from None


def steps(root: str) -> list[int]:
    """Steps that have a folder under `root`, rising."""
    try:
        return sorted({int(m.group(1)) for n in os.listdir(root) if (m := _STEP.match(n))})
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folder(root: str, step: int) -> str:
    return os.path.join(root, f"step_{step}")


def newest(root: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not."""
    damaged, found = [], steps(root)
    names = set(os.listdir(root)) if found else set()
    for step in reversed(found):
        path = _folder(root, step)
        for candidate in (path, path + _REPLACED):
            if os.path.basename(candidate) in names:
                try:
                    _verify_named(candidate, step)
                    return candidate, damaged
                except UserError as e:
                    damaged.append(str(e))
    return None, damaged


def whole(root: str) -> tuple[list[str], list[str]]:
    """Every whole checkpoint under `root`, by rising step, and a line for each that is not."""
    found, damaged = [], []
    for step in steps(root):
        try:
            _verify_named(path := _folder(root, step), step)
            found.append(path)
        except UserError as e:
            damaged.append(str(e))
    return found, damaged


def verify(path: str) -> Manifest:
    """Check every file against the manifest; returns the manifest.

    Raises:
        UserError: not a checkpoint, or the file that is missing, cannot be read, was cut short or changed.
    """
    try:
        found = look(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    if found is None or not os.path.isdir(path):
        raise UserError(f"{path}: no such checkpoint folder{_nearby(path)}")
    file = os.path.join(path, MANIFEST)
    found = read_json(file, _MISSING)
    if isinstance(found, dict) and found.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {found.get('format')!r}; this version reads {FORMAT}")
    manifest = check_record(found, Manifest, file, _OTHER)
    if STATE not in manifest.files:
        raise UserError(f"{file}: names no {STATE}; {_OTHER}")
    for name, facts in manifest.files.items():
        if not is_inside(name):
            raise UserError(f"{file}: names {name[:80]!a}, which is not in the checkpoint's folder; {_OTHER}")
        _check_file(os.path.join(path, name), facts)
    return manifest


def _verify_named(path: str, step: int) -> None:
    """`verify` a checkpoint of a run, which its name has to say the step of: by it the newest is known.

    Raises:
        UserError: of `verify`, or it is of another step. A state of another form is for its reader to refuse.
    """
    verify(path)
    try:
        held = read_state(path)["global_step"]
    except UserError:
        return
    if held != step:
        raise UserError(f"{path}: holds step {held:,}, which its name does not say; rename it to step_{held}")


def _check_file(path: str, facts: FileFacts) -> None:
    """Hold a file to what the manifest says of it; one that cannot be read is as good as damaged."""
    try:
        found = measure_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing from the checkpoint") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    if found.bytes != facts.bytes:
        raise UserError(f"{path}: {found.bytes} bytes where {facts.bytes} were written; it was cut short or changed")
    if found.sha256 != facts.sha256:
        raise UserError(f"{path}: its SHA-256 differs from the manifest's; it was changed after it was written")


def load(path: str, only: str | None = None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """A verified checkpoint: tensors by file stem and name, on the CPU, and the state.

    Args:
        only: the stem of the one file to read; default: all.

    Raises:
        UserError: of `verify`, or a file that holds no tensors.
    """
    manifest = verify(path)
    stems = [n.removesuffix(".safetensors") for n in manifest.files if n.endswith(".safetensors")]
    files = {}
    for stem in stems if only is None else [s for s in stems if s == only]:
        file = os.path.join(path, f"{stem}.safetensors")
        try:
            files[stem] = safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as e:
            raise UserError(f"{file}: cannot be read ({' '.join(str(e).split())[:120]})") from None
    if "model" not in files:
        raise UserError(f"{path}: has no model.safetensors; {_OTHER}")
    return files, read_state(path)


def read_state(path: str) -> dict[str, Any]:
    """state.json of the checkpoint at `path`.

    Raises:
        UserError: it is not there, cannot be read, or is not what this trainer writes.
    """
    return read_record(os.path.join(path, STATE), SavedState, _MISSING, _OTHER).model_dump()


def clean(root: str) -> None:
    """Remove what killed runs left half-written, and give back its name to what a kill left half-replaced."""
    for name in os.listdir(root):
        path, target = os.path.join(root, name), os.path.join(root, name.removesuffix(_REPLACED))
        if name.startswith(_TEMPORARY):
            _remove(path)
        elif path != target and _STEP.match(name):
            if _whole(target):
                _remove(path)
            else:
                _remove(target)
                os.rename(path, target)


def _remove(path: str) -> None:
    """Remove a folder, or a file, link or pipe in its place, as far as that can be; a link's target stays."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)


def _whole(path: str, step: int | None = None) -> bool:
    """Whether `path` is a checkpoint, and of that step if one is given."""
    try:
        verify(path) if step is None else _verify_named(path, step)
    except UserError:
        return False
    return True


def _rotate(root: str, keep: int, written: int, finite: bool) -> None:
    have = [s for s in steps(root) if os.path.isdir(_folder(root, s))]
    # Above what was just written lies what the run passed over when it went back. Damaged, it would count for ever.
    have = [s for s in have if s <= written or _whole(_folder(root, s), s)]
    last = written if finite else next((s for s in reversed(have) if _finite(_folder(root, s))), None)
    for step in set(have) - {*have[-keep:], written, last}:
        # renamed first: a kill while deleting must not leave something that looks like a checkpoint
        doomed = os.path.join(root, f"{_TEMPORARY}old_{step}.{os.getpid()}")
        with contextlib.suppress(OSError):  # what cannot be removed now is removed at a later save
            os.rename(_folder(root, step), doomed)
            _remove(doomed)


def _finite(path: str) -> bool:
    """Whether `path` is a whole checkpoint of finite weights."""
    return _whole(path) and bool(read_state(path).get("finite"))


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def _nearby(path: str) -> str:
    have = steps(os.path.dirname(os.path.abspath(path)))
    return f"; there are steps {', '.join(map(str, have))}" if have else ""
