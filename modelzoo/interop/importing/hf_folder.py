"""A Hugging Face folder as a run of ours: config, weights, masks, tokenizer, and where it came from."""

import os
import shlex
from functools import partial

import torch
from torch import Tensor

from modelzoo.adapter_files import PEFT_FILES
from modelzoo.checksums import check_checksums
from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.evaluation.inference.exported_files import PICKLED, read_index
from modelzoo.finite import are_finite
from modelzoo.folders import add_kind
from modelzoo.interop.cards import origin as origins
from modelzoo.interop.hf import biogpt
from modelzoo.interop.hf.model_section import read_model
from modelzoo.interop.hf.schemas import BIOGPT
from modelzoo.interop.hf.tensor_files import MASKS, read_tensors, require_floats
from modelzoo.interop.hf.tensors import convert_from_hf
from modelzoo.interop.importing.initial_masks import describe_initial_masks
from modelzoo.interop.importing.tokenizer import compare_with_data, take_tokenizer
from modelzoo.models.shapes import check_weights
from modelzoo.names import is_mask, name_mask
from modelzoo.reading import exists
from modelzoo.records import read_json
from modelzoo.training.checkpoints.state_json import CheckpointState
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.new import load_with_model, write_run

CONVERT = "convert it to safetensors first: load it where you trust it, and model.save_pretrained(FOLDER)"


def import_hf(source: str, out: str, params: str | None) -> str:
    """Write the run `out` from the folder `source`; arguments as `import_checkpoint` takes them.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: a file that is missing or damaged, or a model that this trainer does not compute; names the key.
    """
    check_checksums(source)
    file = os.path.join(source, "config.json")
    if not exists(file) and exists(os.path.join(source, PEFT_FILES[0])):
        raise UserError(
            f"{source}: holds an adapter of PEFT ({PEFT_FILES[0]}) and no model; import the model that it is for, and "
            "name the adapter with trainer.init.lora.path (or soft_prompt.path)"
        )
    described = read_json(file, add_kind("missing; a Hugging Face model folder has one", source))
    if isinstance(described, dict) and described.get("model_type") == BIOGPT:
        section, notes, kind = biogpt.read_model_section(described, file), [], "BioGPT"
        convert = biogpt.convert_weights
    else:
        theirs = read_model(described, file)
        section, notes, kind = theirs.section, theirs.notes, theirs.family.architecture
        convert = partial(convert_from_hf, family=theirs.family)
    c = GPTConfig.model_validate(section)
    words, bos, about_words = take_tokenizer(source, c.vocab_size)
    if bos is not None:
        section["bos_token_id"] = bos
    try:
        tensors = _tensors(source)
        require_floats(tensors, source)
        weights = convert(tensors, c)
        found = convert(masks, c) if (masks := _masks(source)) else {}
    except UserError as e:
        raise (e if str(e).startswith(source) else UserError(f"{source}: {e}")) from None
    check_weights({n: x.shape for n, x in weights.items()}, c, source)
    for name, x in found.items():
        if name not in weights or x.shape != weights[name].shape:
            raise UserError(f"{source}: {MASKS} holds a mask for {name}, which has another shape or none")
        if count := int(weights[name][~x.bool()].count_nonzero()):
            raise UserError(
                f"{source}: {MASKS} switches off {count:,} weights of {name} that are not 0; it is damaged, or of "
                "another model: export again, or remove it for a dense model"
            )
    if params is None:
        optimizer = {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-4}}
        config = Config.model_validate({"trainer": {"init": {"model": section, "optimizer": optimizer}}})
    else:
        config = load_with_model(params, section)
    model: dict[str, Tensor] = {n: x.float() for n, x in weights.items()}
    # v may be dense in a pack whose mask is all live there: such a mask is left out
    model |= {name_mask(n): x.bool() for n, x in found.items() if not bool(x.all())}
    finite = are_finite(x for n, x in model.items() if not is_mask(n))
    state = CheckpointState.of(config.trainer.init, global_step=0, dataset=f"none ({source})", finite=finite).as_json()
    if config.trainer.init.sparsity and len(model) == len(weights):
        print("\n".join(describe_initial_masks(config.trainer.init, weights, out)), flush=True)
    origin = origins.read_origin(source)
    others = {origins.FILE: origin.as_json(), **({} if words is None else {f.TOKENIZER: words})}
    path = write_run(out, {"model": model, "optimizer": {}}, state, config, origins.WRITER, others)
    lines = [f"wrote      {path}: {len(weights)} weights of a {kind}, {len(model) - len(weights)} masks"]
    lines += [f"note       {note}" for note in notes]
    if os.path.isdir(adapter := os.path.join(source, "adapter")):
        lines.append(
            f"note       {adapter} is not imported, the base model alone is; name it with trainer.init.lora.path or "
            "soft_prompt.path"
        )
    lines += [f"           {out}: config.yaml, {', '.join(others)}"]
    if origin.revision:
        lines.append(f"           from {origin.describe()}, which its exports' cards name")
    if len(model) > len(weights) and not config.trainer.init.sparsity:
        lines.append(
            "           the masks are in the checkpoint, the config has no sparsity section: trained on, the model is "
            "dense; import with -p CONFIG that has one to keep them"
        )
    about_words += compare_with_data(words, config) if words is not None else []
    lines += [f"           {line}" for line in about_words]
    if config.trainer.fit is None:
        lines.append(
            "           config.yaml has no data yet: add trainer.fit.train_dataloader, or import with -p CONFIG"
        )
    states = "model,sparsity" if len(model) > len(weights) and config.trainer.init.sparsity else "model"
    command = ["-p", RunFolder(out).config, "-m", "train", "-o", out, "--checkpoint_path", path]
    command += ["--load_checkpoint_states", states]
    lines.append(f"next       python run.py {shlex.join(command)}")
    return "\n".join(lines)


def _tensors(source: str) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    places = read_index(source)
    if places is None:
        if not exists(whole := os.path.join(source, "model.safetensors")):
            pickled = sorted(n for n in os.listdir(source) if n.endswith(PICKLED))
            why = f"; {pickled[0]} is pickled and could run code, so it is not loaded" if pickled else ""
            raise UserError(f"holds no model.safetensors{why} ({CONVERT})")
        return read_tensors(whole)
    index = "model.safetensors.index.json: weight_map"
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        for tensor, x in read_tensors(os.path.join(source, name)).items():
            if places.get(tensor, name) != name or tensor in tensors:
                raise UserError(f"{index}: {tensor} is in {name}, and elsewhere too")
            tensors[tensor] = x
    if lacking := sorted(places.keys() - tensors.keys()):
        raise UserError(f"{index}: {lacking[0]} is not in {places[lacking[0]]}")
    return tensors


def _masks(source: str) -> dict[str, Tensor]:
    """The masks of an exported folder, which others do not have."""
    path = os.path.join(source, MASKS)
    found = read_tensors(path) if exists(path) else {}
    if other := next((n for n, x in found.items() if x.dtype != torch.bool), None):
        raise UserError(f"{path}: {other} is no mask; masks are bool")
    return found
