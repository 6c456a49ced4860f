"""Older Model Zoo dialects to the trainer format: releases 1.8 to 2.3 (`train_input`, `runconfig`, ...) and 2.4.

Every key is moved, translated, accepted as having no effect here, or refused by name with its line; none is dropped
silently. The marks move along, so a problem found later in the new key still names the line it was written on.
"""

from modelzoo.config.legacy import model, optim
from modelzoo.config.legacy.base import IDLE, ONLY, RUNCONFIG, Upgrade, dotted
from modelzoo.config.legacy.model_names import refuse_other_files, settle_name
from modelzoo.config.loading.explain import did_you_mean
from modelzoo.config.loading.yaml12 import Document, Note

SECTIONS = ("train_input", "eval_input", "model", "optimizer", "sparsity", "runconfig")


def is_older(doc: Document) -> bool:
    return isinstance(doc.data, dict) and "trainer" not in doc.data and any(s in doc.data for s in SECTIONS)


def upgrade_config(doc: Document) -> None:
    """Turn `doc` (in place) into the trainer format and note what was done; of today's only a model's name changes.

    Raises:
        UserError: it is the config of another model (see `model_names`).
    """
    refuse_other_files(doc)
    if not is_older(doc):
        settle_name(doc, model.PLACE, model.find_section(doc))
        model.precision_in_model(doc)
        optim.spell_class(doc)
        return
    settle_name(doc, ("model",), doc.data.get("model"))
    keep_last(doc)
    up = Upgrade(doc)
    for name in sorted(doc.data.keys() - set(SECTIONS)):
        up.refuse((name,), f"unknown section{did_you_mean(name, SECTIONS)}")
        del doc.data[name]
    optimizer = doc.data.get("optimizer")
    if "optimizer" in doc.data:
        optim.optimizer(up)
    model.model(up, optimizer if isinstance(optimizer, dict) else {})
    if "sparsity" in doc.data:
        optim.sparsity(up)
    _inputs(up)
    for key in up.section("runconfig", RUNCONFIG):
        known = [*RUNCONFIG, *IDLE["runconfig"], *ONLY["runconfig"]]
        up.refuse(("runconfig", key), f"unknown key{did_you_mean(key, known)}")
    _settle(up)
    doc.data = {"trainer": up.new}


def keep_last(doc: Document) -> None:
    """Allow the repeated keys of `doc`: the last value holds, which is what PyYAML gave those who ran such a file."""
    for repeat in doc.repeats:
        doc.problems.remove(str(repeat))
        what = "with one value" if repeat.equal else "and the last value holds, as it did in Model Zoo"
        lines = f"given on line {repeat.first.line} and on line {repeat.last.line}"
        text = f"{repeat.last}: {dotted(repeat.path)}: {lines}, {what}"
        doc.notes.append(Note("idle" if repeat.equal else "changed", text))
    doc.repeats.clear()


def _inputs(up: Upgrade) -> None:
    has_train = "train_input" in up.old
    for name, place in (
        ("train_input", "fit.train_dataloader"),
        ("eval_input", "fit.val_dataloader" if has_train else "validate.val_dataloader"),
    ):
        if name not in up.old:
            continue
        rest = up.section(name, {}, inputs="input")
        up.put(place, rest, (name,))


def _settle(up: Upgrade) -> None:
    """What the old keys meant in ways that the new ones do not."""
    init = up.new.setdefault("init", {})
    checkpoint, logging = init.get("checkpoint", {}), init.get("logging", {})
    if checkpoint.get("steps") == 0:
        checkpoint["steps"] = None
        up.note("changed", ("runconfig", "checkpoint_steps"), "0 (never) is now null")
    if isinstance(logging.get("log_level"), str):
        logging["log_level"] = logging["log_level"].lower()
    loop = init.get("loop", {})
    if loop.get("eval_frequency") == 0:
        loop["eval_frequency"] = None
    if "fit" in up.new and "train_dataloader" not in up.new["fit"]:
        # an evaluation-only file: the checkpoint belongs to validation
        path = up.new.pop("fit").get("ckpt_path")
        if path is not None and "validate" in up.new:
            up.new["validate"]["ckpt_path"] = path
