"""A run's folder that a command makes of weights that exist: its config, and a checkpoint to start from."""

import os
import shutil
from collections.abc import Mapping
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump, resolve, validate
from modelzoo.config.trainer import Config
from modelzoo.files import making_folder, write_guarded, write_text
from modelzoo.reading import exists
from modelzoo.training.checkpoints import saving
from modelzoo.training.runs.folder import RunFolder


def require_empty(out: str) -> None:
    """Refuse a folder that holds anything: nothing of others is mixed with a run, and a run is not written over."""
    try:
        if exists(out) and (not os.path.isdir(out) or os.path.islink(out.rstrip(os.sep)) or os.listdir(out)):
            what = "holds a run already" if RunFolder(out).holds_a_run else "exists, and is not an empty folder"
            raise UserError(f"{out}: {what}; give another folder")
    except OSError as e:
        raise UserError(f"{out}: cannot be read ({e.strerror}); give another folder") from None


def load_with_model(params: str, section: Mapping[str, Any]) -> Config:
    """The config `params` with `section` for its model."""
    doc = resolve(params, Config)
    inner = doc.data
    for key in ("trainer", "init"):
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"{params}: {key}: is not a mapping")
    inner["model"] = section
    return validate(doc, Config)


def write_run(
    out: str, files, state: dict[str, Any], config: Config, comment: str, others: Mapping[str, str] | None = None,
    rest: str | None = None,
) -> str:  # fmt: skip
    """Write the whole run folder or nothing; returns its checkpoint.

    Args:
        files, state: of the checkpoint, as `saving.save` takes them. comment: the first line of config.yaml.
        others: the texts of further files by name.
        rest: a folder that is of no more use then. It goes first: a kill between the two leaves neither half-way.

    Raises:
        UserError: it cannot be written, or `out` has come to hold something meanwhile.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
        with making_folder(out) as temporary:
            folder = RunFolder(temporary)
            try:
                path = saving.save(folder.checkpoints, state["global_step"], files, state, None)
            except UserError as e:
                raise UserError(str(e).replace(temporary, out)) from None
            write_guarded(folder.config, dump(config, comment))
            for name, text in (others or {}).items():
                write_text(os.path.join(temporary, name), text)
            if rest is not None and os.path.isdir(rest):
                shutil.rmtree(rest)
    except OSError as e:
        raise UserError(f"{out}: not written ({e.strerror or e}); nothing of it was kept") from None
    return os.path.join(out, os.path.relpath(path, temporary))
