"""`run.py convert-config OLD NEW`: any Model Zoo GPT config in today's format, and a list of the changes. No torch."""

import os
import shlex
from collections.abc import Sequence

from modelzoo.config.errors import UserError
from modelzoo.config.idle import idle
from modelzoo.config.legacy import upgrade
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import load, resolve, validate
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.sections.not_supported import NOT_SUPPORTED
from modelzoo.config.trainer import Config
from modelzoo.files import choose_mode, replacing
from modelzoo.planning import plan
from modelzoo.reading import exists
from modelzoo.redact import redact_text
from modelzoo.training.runs.length import total_steps

TITLES = {
    "moved": "moved",
    "changed": "changed",
    "assumed": "assumed",
    "idle": "no effect",
}


def convert_config(old: str, new: str, overrides: Sequence[str] = (), force: bool = False) -> str:
    """Write `old` in today's format as `new`; returns what was changed, a line for each thing.

    Raises:
        UserError: what cannot be honoured, by name and line; or `new` exists and `force` is not set.
    """
    if exists(new) and not force:
        raise UserError(f"{new}: exists; give another name, or --force to replace it")
    doc = resolve(old, Config, overrides)
    upgrade.keep_last(doc)  # today's format is refused for it, but this writes a file that has each key once
    notes = [(note.kind, note.text) for note in doc.notes]
    notes += [("idle", text) for text in idle(doc, Config)]
    notes += [("changed", text) for text in _drop(doc)]
    config = validate(doc, Config)
    plan.check_sparsity(config.trainer.init, total_steps(config))
    text = f"# converted from {os.path.basename(old)} by `run.py convert-config`\n" + yaml12.dump(doc.data)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(new)), exist_ok=True)
        with replacing(new, mode=choose_mode(text)) as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
            # read back before it takes its place: a converted file that means something else must never exist
            if load(temporary, Config) != config:
                raise AssertionError(f"{new}: would not read back as {old}")
    except OSError as e:
        raise UserError(f"{new}: cannot be written ({e.strerror})") from None
    notes = [(kind, text.removeprefix(f"{old}:")) for kind, text in notes]  # "116: sparsity: ..." is enough here
    lines = [f"{TITLES[kind]:<10} {redact_text(text)}" for wanted in TITLES for kind, text in notes if kind == wanted]
    lines.append(f"wrote      {new}")
    lines.append(f"next       python run.py -p {shlex.quote(new)} -m plan")
    return "\n".join(lines)


def _drop(doc: Document) -> list[str]:
    """Take out model keys that name features this trainer has not, where they ask for none (others are refused)."""
    try:
        model = doc.data["trainer"]["init"]["model"]
    except (KeyError, TypeError):
        return []
    dropped = []
    for key in [k for k in model if k in NOT_SUPPORTED] if isinstance(model, dict) else []:
        neutral, what = NOT_SUPPORTED[key]
        if model[key] in (neutral, None, {}):
            mark = doc.mark(("trainer", "init", "model", key))
            dropped.append(f"{mark}: trainer.init.model.{key}: {model.pop(key)!r} asks for no {what}; left out")
    return dropped
