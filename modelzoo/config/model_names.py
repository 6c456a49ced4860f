"""Model Zoo's model names: those that mean its GPT, and those that mean another model, which is refused by name.

Model Zoo has one GPT class under many names: `models/nlp/NAME/model.py` of releases 2.4 to 2.10 derives each of `SAME`
from `Gpt2Model` and changes nothing, and before, their run.py called that class itself. `OTHERS` are other classes;
what a key of theirs means is not what the same key means here, so not one of them is read.
"""

import os
import re
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.yaml12 import Document, Note, Path

OWN = ("gpt2", "gpt3")
SAME = (
    *("llama", "LlamaModel", "bloom", "btlm", "jais", "mpt", "mistral", "starcoder", "santacoder"),
    *("mixtral", "gemma2"),
)
_PARALLEL = "whose layers add attention and feed-forward side by side"
_ENCODER = "no decoder-only model"
_IMAGES = "a model of images"
OTHERS = {
    "gptj": f"GPT-J, {_PARALLEL}",
    "gpt-j": f"GPT-J, {_PARALLEL}",
    "gpt_neox": f"GPT-NeoX, {_PARALLEL}",
    "falcon": f"Falcon, {_PARALLEL}",
    **dict.fromkeys(("bert", "bert/classifier", "bert/extractive_summarization", "bert/token_classifier"), _ENCODER),
    **dict.fromkeys(("t5", "transformer", "esm2", "dpr"), _ENCODER),
    "dpo": "preference optimisation over two models",
    **dict.fromkeys(("llava", "multimodal_simple", "vision_transformer", "ViTModel"), _IMAGES),
    **dict.fromkeys(("dit", "dino", "fc_mnist"), _IMAGES),
}
# Keys that only another class of Model Zoo's has. Releases before 2.4 wrote no name into the file.
_KEYS = {
    **dict.fromkeys(("residual_dropout_rate", "use_untied_layer_norm"), f"GPT-J, GPT-NeoX and Falcon, {_PARALLEL}"),
    **dict.fromkeys(("encoder_num_hidden_layers", "src_vocab_size"), "T5 and Transformer, which have an encoder"),
    **dict.fromkeys(("encoder_nonlinearity", "mlm_loss_weight", "q_encoder"), "encoders (BERT, ESM-2, DPR)"),
    "dpo": OTHERS["dpo"],
    **dict.fromkeys(("image_model", "image_model_list", "num_classes", "frequency_embedding_size"), "models of images"),
}
_IN_PATH = {  # what a path calls the models that could be taken for a GPT: folder or part of the file's name
    "gptj": "gptj", "gpt-j": "gptj", "gptneox": "gpt_neox", "gpt_neox": "gpt_neox", "gpt-neox": "gpt_neox",
    "falcon": "falcon",
}  # fmt: skip
_READ = f"those that are read: {', '.join(n for n in (*OWN, *SAME) if n.islower())}"


def settle_name(doc: Document, path: Path, section: Any) -> None:
    """Let the model `section` of `doc` (at `path`) have a name of ours, or refuse it.

    A name of Model Zoo's for its GPT becomes gpt3 in place, with a note. A name that the schema does not know either is
    left to it.

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
        section["name"] = "gpt3"
        doc.notes.append(Note("changed", f"{at}: {dotted}: {name!r} is Model Zoo's GPT by another name; read as gpt3"))
    if key := next((k for k in section if k in _KEYS), None):
        at, dotted, whose = doc.mark((*path, key)), ".".join(map(str, (*path, key))), f"Model Zoo's {_KEYS[key]}"
        raise UserError(f"{at}: {dotted}: is a key of {whose}, which this trainer does not have; {_READ}")


def refuse_path(file: str) -> None:
    """Refuse a config without a model's name that lies where Model Zoo keeps those of another model.

    Raises:
        UserError: names the part of the path, and the key that overrules it.
    """
    parts = os.path.abspath(file).lower().split(os.sep)
    words = re.split(r"[_.]", parts[-1].replace("gpt_neox", "gptneox"))
    for part in [*words, *parts[-2:-4:-1]]:  # NAME/configs/FILE
        if part in OWN or part in SAME or part in ("gpt-2", "gpt-3"):
            return
        if name := _IN_PATH.get(part):
            raise UserError(
                f"{file}: model.name: is not there, and by its path this is {OTHERS[name]}, which this trainer does "
                "not have; if it is a GPT-3, write name: gpt3 under model"
            )


def refuse_config_json(doc: Document) -> None:
    """Refuse a Hugging Face config.json that is given in place of a config.

    Raises:
        UserError: names the verb that reads its folder.
    """
    data = doc.data
    kind = data.get("model_type") if isinstance(data, dict) and "trainer" not in data else None
    if isinstance(kind, str):
        file = doc.mark(()).file
        folder = os.path.dirname(file) or "."
        raise UserError(
            f"{file}: is a Hugging Face model's config ({kind[:40]}), not one of a run; "
            f"python run.py import {folder} RUN reads such a folder"
        )
