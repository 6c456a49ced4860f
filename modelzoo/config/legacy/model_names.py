"""Model Zoo's model names: those that mean one of the two classes that are read, and those of others, refused by name.

Model Zoo has one GPT class under many names: `models/nlp/NAME/model.py` of releases 2.4 to 2.10 derives each of them
from `Gpt2Model` (falcon and gpt-neox from `GptjModel`) and changes nothing, and before, their run.py called that class
itself. `OTHERS` are other classes; what a key of theirs means is not what the same key means here, so not one is read.
"""

import os
import re
import shlex
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.loading.yaml12 import Document, Note, Path

OWN = ("gpt2", "gpt3", "gptj")
SAME = {
    **dict.fromkeys(("llama", "LlamaModel", "bloom", "btlm", "jais", "mpt", "mistral"), "gpt3"),
    **dict.fromkeys(("starcoder", "santacoder", "mixtral", "gemma2"), "gpt3"),
    **dict.fromkeys(("falcon", "gpt-neox", "gpt_neox"), "gptj"),
}
_ENCODER = "no decoder-only model"
_IMAGES = "a model of images"
OTHERS = {
    **dict.fromkeys(("bert", "bert/classifier", "bert/extractive_summarization", "bert/token_classifier"), _ENCODER),
    **dict.fromkeys(("t5", "transformer", "esm2", "dpr"), _ENCODER),
    "dpo": "preference optimisation over two models",
    **dict.fromkeys(("llava", "multimodal_simple", "vision_transformer", "ViTModel"), _IMAGES),
    **dict.fromkeys(("dit", "dino", "fc_mnist"), _IMAGES),
}
# Keys that one class of Model Zoo's alone has. Releases before 2.4 wrote no name into the file.
_KEYS = {
    **dict.fromkeys(("encoder_num_hidden_layers", "src_vocab_size"), "T5 and Transformer, which have an encoder"),
    **dict.fromkeys(("encoder_nonlinearity", "mlm_loss_weight", "q_encoder"), "encoders (BERT, ESM-2, DPR)"),
    "dpo": OTHERS["dpo"],
    **dict.fromkeys(("image_model", "image_model_list", "num_classes", "frequency_embedding_size"), "models of images"),
}
_OF_GPTJ = ("use_untied_layer_norm", "residual_dropout_rate")
_IN_PATH = ("gptj", "gpt-j", "gptneox", "gpt-neox", "gpt_neox", "falcon")  # folders, and parts of a file's name
_READ = f"those that are read: {', '.join(n for n in (*OWN, *SAME) if n.islower())}"


def settle_name(doc: Document, path: Path, section: Any) -> None:
    """Let the model `section` of `doc` (at `path`) have a name of ours, or refuse it.

    Another name of Model Zoo's for one of the two classes is replaced, with a note. A name that is known neither here
    nor there is left to the schema.

    Raises:
        UserError: the name, or a key, belongs to another model.
    """
    if not isinstance(section, dict):
        return
    name = section.get("name")
    at, dotted = doc.mark((*path, "name")), ".".join(map(str, (*path, "name")))
    if isinstance(name, str) and name in OTHERS:
        raise UserError(f"{at}: {dotted}: {name!r} is {OTHERS[name]}, which this trainer does not have; {_READ}")
    if isinstance(name, str) and name in SAME:
        section["name"] = SAME[name]
        doc.notes.append(Note("changed", f"{at}: {dotted}: {name!r} is the class of {SAME[name]}, and read as that"))
    if key := next((k for k in section if k in _KEYS), None):
        at, dotted, whose = doc.mark((*path, key)), ".".join(map(str, (*path, key))), f"Model Zoo's {_KEYS[key]}"
        raise UserError(f"{at}: {dotted}: is a key of {whose}, which this trainer does not have; {_READ}")
    other = isinstance(section.get("name"), str) and section["name"] != "gptj"
    key = "use_untied_layer_norm"  # the other one is taken as dropout_rate, which is reported
    if other and key in section:
        at, dotted, name = doc.mark((*path, key)), ".".join(map(str, (*path, key))), section["name"]
        raise UserError(
            f"{at}: {dotted}: is a key of Model Zoo's gptj (GPT-J, GPT-NeoX, Falcon), whose layers add attention and "
            f"feed-forward side by side; the name here is {name}"
        )


def find_name(file: str, section: dict[str, Any]) -> tuple[str, str]:
    """The name of a model section that has none, in the older file `file`, and how it is known.

    Older files leave it to the folder that their run.py lies in, NAME/configs/FILE.
    """
    if key := next((k for k in _OF_GPTJ if k in section), None):
        return "gptj", f"by its {key}"
    parts = os.path.abspath(file).lower().split(os.sep)
    words = re.split(r"[_.]", parts[-1].replace("gpt_neox", "gptneox"))
    for part in [*words, *parts[-2:-4:-1]]:
        if part in ("gpt2", "gpt-2", "gpt3", "gpt-3") or SAME.get(part) == "gpt3":
            break
        if part in _IN_PATH:
            return "gptj", f"by its path ({part})"
    folders = [*parts[:-1], *(["gpt2"] if "gpt2" in parts[-1] else [])]
    return ("gpt2" if {"gpt2", "gpt-2"} & set(folders) else "gpt3"), ""


def refuse_other_files(doc: Document) -> None:
    """Refuse a study, a task or a Hugging Face config.json that is given in place of a run's config.

    Raises:
        UserError: names the command that reads it.
    """
    data, name = doc.data, doc.mark(()).file
    if isinstance(data, dict) and "trainer" not in data:
        if isinstance(data.get("study"), dict):
            base = data["study"].get("base")
            also = f"; its runs follow from {base}" if isinstance(base, str) else ""
            raise UserError(
                f"{name}: is a study, not the config of one run; run.py -p {shlex.quote(name)} -m study reads it{also}"
            )
        if isinstance(data.get("form"), str):
            raise UserError(
                f"{name}: is a task, not the config of a run; run.py ... -m score --tasks {shlex.quote(name)} reads it"
            )
    kind = data.get("model_type") if isinstance(data, dict) and "trainer" not in data else None
    if isinstance(kind, str):
        file = doc.mark(()).file
        folder = os.path.dirname(file) or "."
        raise UserError(
            f"{file}: is a Hugging Face model's config ({kind[:40]}), not one of a run; "
            f"python run.py import {shlex.quote(folder)} RUN reads such a folder"
        )
