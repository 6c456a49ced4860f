"""`run.py convert-config OLD NEW`: any Model Zoo GPT config as today's, with each change said. No torch."""

import os
from collections.abc import Iterator, Sequence

from modelzoo.config import yaml12
from modelzoo.config.errors import UserError
from modelzoo.config.legacy import upgrade
from modelzoo.config.load import load, resolve, validate
from modelzoo.config.model import NOT_SUPPORTED
from modelzoo.config.trainer import Config
from modelzoo.config.yaml12 import Document
from modelzoo.files import replacing
from modelzoo.planning import plan
from modelzoo.training.run_length import total_steps

TITLES = {
    "moved": "moved",
    "changed": "changed",
    "assumed": "assumed",
    "idle": "no effect",
}
CSX_ONLY = {  # keys under trainer.init (a dot descends) that act on CS-2 alone
    "backend": (
        *("compile_dir", "num_csx", "num_workers_per_csx", "mgmt_address", "credentials_path", "mount_dirs"),
        *("python_paths", "job_labels", "job_priority", "job_time_sec", "disable_version_check", "cluster_config"),
    ),
    "precision": ("precision_opt_level",),
    "model": ("fold_rope_consts", "attention_kernel", "attention_softmax_fp32"),
    "checkpoint": ("checkpoint_name",),
    "": ("autorestart",),
}
CALLBACKS = {
    "ComputeNorm": "the gradient norm is always logged",
    "CheckLoss": "loop.on_nonfinite is always on",
    **dict.fromkeys(("GlobalFlags", "ScopedTrainFlags", "ScopedValidateFlags"), "acts on CS-2 only"),
}


def convert(old: str, new: str, overrides: Sequence[str] = (), force: bool = False) -> str:
    """Write `old` in today's format as `new`; returns what was changed, a line for each thing.

    Raises:
        UserError: what cannot be honoured, by name and line; or `new` exists and `force` is not set.
    """
    if os.path.exists(new) and not force:
        raise UserError(f"{new}: exists; give another name, or --force to replace it")
    doc = resolve(old, Config, overrides)
    upgrade.keep_last(doc)  # today's format is refused for it, but this writes a file that has each key once
    notes = [(note.kind, note.text) for note in doc.notes]
    notes += [("idle", text) for text in idle(doc)]
    notes += [("changed", text) for text in _drop(doc)]
    config = validate(doc, Config)
    plan.check(config.trainer.init, total_steps(config))
    text = f"# converted from {os.path.basename(old)} by `run.py convert-config`\n" + yaml12.dump(doc.data)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(new)), exist_ok=True)
        with replacing(new) as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
            # read back before it takes its place: a converted file that means something else must never exist
            if load(temporary, Config) != config:
                raise AssertionError(f"{new}: would not read back as {old}")
    except OSError as e:
        raise UserError(f"{new}: cannot be written ({e.strerror})") from None
    notes = [(kind, text.removeprefix(f"{old}:")) for kind, text in notes]  # "116: sparsity: ..." is enough here
    lines = [f"{TITLES[kind]:<10} {text}" for wanted in TITLES for kind, text in notes if kind == wanted]
    lines.append(f"wrote      {new}")
    lines.append(f"next       python run.py -p {new} -m plan")
    return "\n".join(lines)


def remarks(doc: Document) -> list[str]:
    """What a person should know of a config before it runs: what was assumed or changed, and what has no effect."""
    return [note.text for note in doc.notes if note.kind != "moved"] + list(idle(doc))


def idle(doc: Document) -> Iterator[str]:
    """Keys of today's format that are accepted and change nothing off CS-2, each with its line."""
    try:
        init = doc.data["trainer"]["init"]
    except (KeyError, TypeError):
        return
    if not isinstance(init, dict):
        return
    for section, keys in CSX_ONLY.items():
        found = init.get(section) if section else init
        for key in keys:
            if isinstance(found, dict) and found.get(key) is not None:
                path = ("trainer", "init", *([section] if section else []), key)
                yield f"{doc.mark(path)}: {'.'.join(path)}: acts on CS-2 only"
    precision = init.get("precision")
    if isinstance(precision, dict):
        kind = precision.get("fp16_type")
        for key, off, why in (
            ("fp16_type", kind == "cbfloat16", "cbfloat16 is the CS-2's; bfloat16 elsewhere"),
            ("loss_scaling_factor", kind != "float16", "a dynamic scale acts in float16 only"),
            ("emulate", precision.get("enabled") is False, "enabled: false computes in float32"),
        ):
            value = precision.get(key)
            if off and (value in ("cbfloat16", "dynamic") or value is True):
                path = ("trainer", "init", "precision", key)
                yield f"{doc.mark(path)}: {'.'.join(path)}: {why}"
    callbacks = init.get("callbacks")
    for i, callback in enumerate(callbacks if isinstance(callbacks, list) else []):
        name = callback if isinstance(callback, str) else next(iter(callback), "") if isinstance(callback, dict) else ""
        if name in CALLBACKS:
            yield f"{doc.mark(('trainer', 'init', 'callbacks', i))}: trainer.init.callbacks.{name}: {CALLBACKS[name]}"


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
