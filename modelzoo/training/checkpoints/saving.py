"""Write a checkpoint whole or not at all, and remove what it makes too many.

It is written under a temporary name, read back, flushed to disk and renamed; a kill at any moment leaves the previous
one, and what a kill leaves is cleared at the next start.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.files import apply_umask, measure_file, sync
from modelzoo.training.checkpoints.checkpoint import (
    FORMAT,
    MANIFEST,
    REPLACED,
    STATE,
    STEP_NAME,
    newest,
    read_state,
    step_folder,
    steps,
    verify,
    verify_named,
)

_TEMPORARY = ".tmp-"


class NotWritten(UserError):
    """A checkpoint cannot be written; what was there before is as it was."""


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
    target, temporary = step_folder(root, step), os.path.join(root, f"{_TEMPORARY}step_{step}.{os.getpid()}")
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
                os.rename(target, target + REPLACED)  # one stays readable under its second name until the new is there
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


def clean(root: str) -> None:
    """Remove what killed runs left half-written, and give back its name to what a kill left half-replaced."""
    for name in os.listdir(root):
        path, target = os.path.join(root, name), os.path.join(root, name.removesuffix(REPLACED))
        if name.startswith(_TEMPORARY):
            _remove(path)
        elif path != target and STEP_NAME.match(name):
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
        verify(path) if step is None else verify_named(path, step)
    except UserError:
        return False
    return True


def _rotate(root: str, keep: int, written: int, finite: bool) -> None:
    have = [s for s in steps(root) if os.path.isdir(step_folder(root, s))]
    # Above what was just written lies what the run passed over when it went back. Damaged, it would count for ever.
    have = [s for s in have if s <= written or _whole(step_folder(root, s), s)]
    last = written if finite else next((s for s in reversed(have) if _finite(step_folder(root, s))), None)
    for step in set(have) - {*have[-keep:], written, last}:
        # renamed first: a kill while deleting must not leave something that looks like a checkpoint
        doomed = os.path.join(root, f"{_TEMPORARY}old_{step}.{os.getpid()}")
        with contextlib.suppress(OSError):  # what cannot be removed now is removed at a later save
            os.rename(step_folder(root, step), doomed)
            _remove(doomed)


def _finite(path: str) -> bool:
    """Whether `path` is a whole checkpoint of finite weights."""
    return _whole(path) and bool(read_state(path).get("finite"))


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
