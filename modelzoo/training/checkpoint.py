"""Checkpoints that are whole or not there: safetensors + JSON in a step folder, checked by SHA-256, renamed into place.

    <root>/step_300/  model.safetensors  optimizer.safetensors  state.json  manifest.json

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
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.files import read_json_object, sha256, sync

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
_STEP = re.compile(r"step_(\d+)(\.replaced)?$")
_TEMPORARY, _REPLACED = ".tmp-", ".replaced"


def save(
    root: str, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int | None
) -> str:
    """Write `<root>/step_<step>` and remove the oldest beyond `keep` (the last finite one always stays).

    Args:
        files: tensors by file stem, then by name.
        state: JSON values; `state["finite"]` says whether every weight is finite.
        keep: how many to keep; None keeps all.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    target, temporary = _folder(root, step), os.path.join(root, f"{_TEMPORARY}step_{step}.{os.getpid()}")
    try:
        os.makedirs(root, exist_ok=True)
        clean(root)
        os.makedirs(temporary)
        for stem, tensors in files.items():
            # contiguous copies on the CPU: safetensors writes bytes as they are in memory
            safetensors.torch.save_file(
                {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
                os.path.join(temporary, f"{stem}.safetensors"),
            )
        _write_json(os.path.join(temporary, STATE), state)
        names = sorted(os.listdir(temporary))
        sums = {
            n: {"sha256": sha256(os.path.join(temporary, n)), "bytes": os.path.getsize(os.path.join(temporary, n))}
            for n in names
        }
        _write_json(os.path.join(temporary, MANIFEST), {"format": FORMAT, "files": sums})
        for name in (*names, MANIFEST):
            sync(os.path.join(temporary, name))
        sync(temporary)
        if os.path.exists(target):  # the same step again: folders cannot be exchanged in one rename, so the old one
            os.rename(target, target + _REPLACED)  # stays readable under its second name until the new one is there
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
        reason = "the disk is full" if full else str(e)
        last = newest(root)[0]
        raise UserError(
            f"{target}: checkpoint not written: {reason}; "
            + (f"the last good one is {last}" if last else "there is no earlier one")
            + ("; free some space and run the same command again" if full else "")
        ) from None
    if keep is not None:
        _rotate(root, keep, step, bool(state.get("finite")))
    return target


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
    damaged = []
    for step in reversed(steps(root)):
        path = _folder(root, step)
        for candidate in (path, path + _REPLACED):
            if os.path.exists(candidate):
                try:
                    verify(candidate)
                    return candidate, damaged
                except UserError as e:
                    damaged.append(str(e))
    return None, damaged


def whole(root: str) -> list[str]:
    """Every whole checkpoint under `root`, by rising step."""
    return [path for step in steps(root) if _whole(path := _folder(root, step))]


def verify(path: str) -> dict:
    """Check every file against the manifest; returns the manifest.

    Raises:
        UserError: not a checkpoint, or the file that is missing, cut short or changed.
    """
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such checkpoint folder{_nearby(path)}")
    manifest = _read_json(os.path.join(path, MANIFEST))
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {manifest.get('format')!r}; this version reads {FORMAT}")
    try:
        facts = [(name, of["bytes"], of["sha256"]) for name, of in manifest["files"].items()]
        names = {name for name, _, _ in facts}
        if STATE not in names or manifest.keys() != {"format", "files"}:
            raise KeyError
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{os.path.join(path, MANIFEST)}: is not what this trainer writes; it was changed") from None
    for name, size, digest in facts:
        file = os.path.join(path, name)
        if not os.path.isfile(file):
            raise UserError(f"{file}: missing from the checkpoint")
        if os.path.getsize(file) != size:
            raise UserError(
                f"{file}: {os.path.getsize(file)} bytes where {size} were written; it was cut short or changed"
            )
        if sha256(file) != digest:
            raise UserError(f"{file}: its SHA-256 differs from the manifest's; it was changed after it was written")
    return manifest


def load(path: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """A verified checkpoint: tensors by file stem and name, on the CPU, and the state."""
    manifest = verify(path)
    stems = [n.removesuffix(".safetensors") for n in manifest["files"] if n.endswith(".safetensors")]
    try:
        files = {stem: safetensors.torch.load_file(os.path.join(path, f"{stem}.safetensors")) for stem in stems}
    except safetensors.SafetensorError as e:
        raise UserError(f"{path}: {e}") from None
    return files, read_state(path)


def read_state(path: str) -> dict[str, Any]:
    return _read_json(os.path.join(path, STATE))


def clean(root: str) -> None:
    """Remove what killed runs left half-written, and give back its name to what a kill left half-replaced."""
    for name in os.listdir(root):
        path, target = os.path.join(root, name), os.path.join(root, name.removesuffix(_REPLACED))
        if name.startswith(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)
        elif path != target and _STEP.match(name):
            if _whole(target):
                shutil.rmtree(path, ignore_errors=True)
            else:
                shutil.rmtree(target, ignore_errors=True)
                os.rename(path, target)


def _whole(path: str) -> bool:
    try:
        verify(path)
    except UserError:
        return False
    return True


def _rotate(root: str, keep: int, written: int, finite: bool) -> None:
    have = [s for s in steps(root) if os.path.isdir(_folder(root, s))]
    last = written if finite else next((s for s in reversed(have) if _finite(_folder(root, s))), None)
    for step in set(have) - {*have[-keep:], written, last}:
        # renamed first: a kill while deleting must not leave something that looks like a checkpoint
        doomed = os.path.join(root, f"{_TEMPORARY}old_{step}.{os.getpid()}")
        with contextlib.suppress(OSError):  # what cannot be removed now is removed at a later save
            os.rename(_folder(root, step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _finite(path: str) -> bool:
    """Whether `path` is a whole checkpoint of finite weights."""
    return _whole(path) and bool(read_state(path).get("finite"))


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def _read_json(path: str) -> dict:
    missing = "missing; not a checkpoint of this trainer, or an unfinished one"
    return read_json_object(path, missing, "is not what this trainer writes")


def _nearby(path: str) -> str:
    have = steps(os.path.dirname(os.path.abspath(path)))
    return f"; there are steps {', '.join(map(str, have))}" if have else ""
