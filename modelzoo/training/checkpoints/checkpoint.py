"""Checkpoints as they are on disk: safetensors + JSON in a step folder, checked by SHA-256. `saving` writes them.

    <root>/step_300/  model.safetensors  optimizer.safetensors  state.json  manifest.json
                      explored.safetensors, where masks change; orders.safetensors, where inputs are permuted

No pickle is read or written. Tensors are named by parameter, so nothing depends on an order.
"""

import os
import re
from typing import Annotated, Any

import safetensors
import safetensors.torch
from pydantic import ConfigDict, Field
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.files import measure_file
from modelzoo.reading import look
from modelzoo.records import Record, check_record, is_inside, read_json, read_record

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
STEP_NAME = re.compile(r"step_([0-9]+)(\.replaced)?$")
REPLACED = ".replaced"  # ends the name of a step's folder while another takes its place
_MISSING = "missing; not a checkpoint of this trainer, or an unfinished one"
_OTHER = "is not what this trainer writes; it was changed"


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
    """What every reader needs of state.json; `state_json.CheckpointState` is all of it."""

    global_step: Annotated[int, Field(ge=0)]
    finite: bool


def steps(root: str) -> list[int]:
    """Steps that have a folder under `root`, rising."""
    try:
        return sorted({int(m.group(1)) for n in os.listdir(root) if (m := STEP_NAME.match(n))})
    except (FileNotFoundError, NotADirectoryError):
        return []


def step_folder(root: str, step: int) -> str:
    return os.path.join(root, f"step_{step}")


def newest(root: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not."""
    damaged, found = [], steps(root)
    names = set(os.listdir(root)) if found else set()
    for step in reversed(found):
        path = step_folder(root, step)
        for candidate in (path, path + REPLACED):
            if os.path.basename(candidate) in names:
                try:
                    verify_named(candidate, step)
                    return candidate, damaged
                except UserError as e:
                    damaged.append(str(e))
    return None, damaged


def whole(root: str) -> tuple[list[str], list[str]]:
    """Every whole checkpoint under `root`, by rising step, and a line for each that is not."""
    found, damaged = [], []
    for step in steps(root):
        try:
            verify_named(path := step_folder(root, step), step)
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


def verify_named(path: str, step: int) -> None:
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


def _nearby(path: str) -> str:
    have = steps(os.path.dirname(os.path.abspath(path)))
    return f"; there are steps {', '.join(map(str, have))}" if have else ""
