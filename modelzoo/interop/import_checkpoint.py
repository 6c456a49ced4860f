"""`run.py import`: a Hugging Face folder, or Model Zoo's `.mdl`, as a checkpoint of ours."""

import os
import shlex
from functools import partial

import torch
from torch import Tensor

from modelzoo.checksums import check_checksums
from modelzoo.config.errors import UserError
from modelzoo.config.load import load
from modelzoo.config.model import GPTConfig, find_difference
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data import hub
from modelzoo.evaluation.exported import PICKLED, read_index
from modelzoo.folders import add_kind
from modelzoo.interop import biogpt, hf, hf_sections, mdl, mdl_state
from modelzoo.interop import origin as origins
from modelzoo.interop.export import MASKS
from modelzoo.interop.imported_tokenizer import compare_with_data, take_tokenizer
from modelzoo.interop.masks_ahead import describe_loss
from modelzoo.interop.tensors import read_tensors, require_floats
from modelzoo.models.shapes import check_weights
from modelzoo.names import is_mask, name_mask
from modelzoo.reading import exists
from modelzoo.records import read_json
from modelzoo.training.build import open_shards
from modelzoo.training.checkpoint_state import CheckpointState
from modelzoo.training.new_run import load_with_model, require_empty, write_run
from modelzoo.training.run_folder import RunFolder

WRITER = "imported by `run.py import`"  # the first line of config.yaml
ADAPTER = "adapter_config.json"
_CONVERT = "convert it to safetensors first: load it where you trust it, and model.save_pretrained(FOLDER)"


def import_checkpoint(source: str, out: str, params: str | None = None, weights_only: bool = False) -> str:
    """Write `<out>/checkpoints/step_N` and `<out>/config.yaml` from `source`.

    Args:
        source: a model's folder with safetensors, or a .mdl file.
        params: the config to train on with; a .mdl needs one, a folder replaces its model section.
        weights_only: leave optimizer state out (.mdl).

    Raises:
        UserError: what the source has and a run of ours cannot take, by name; or `out` holds a run already.
    """
    require_empty(out)
    if not exists(source):
        raise UserError(hub.explain_missing(source, "a Hugging Face model's folder, or a .mdl", hub.MODEL))
    if os.path.isdir(source):
        return _hf(source, out, params)
    if source.endswith((".safetensors", ".json")):
        raise UserError(f"{source}: is a part of a model; name its folder: {os.path.dirname(source) or '.'}")
    if source.endswith(PICKLED):
        raise UserError(f"{source}: is pickled and could run code, so it is not loaded; {_CONVERT}")
    if not source.endswith(".mdl"):
        raise UserError(f"{source}: is neither a Hugging Face model's folder nor a .mdl; those can be imported")
    return _mdl(source, out, params, weights_only)


def _mdl(source: str, out: str, params: str | None, weights_only: bool) -> str:
    if params is None:
        raise UserError(f"{source}: a .mdl does not hold its model's config; name the run's config with -p")
    config = load(params, Config)
    init = config.trainer.init
    sections = [s for s in mdl_state.SECTIONS if not (weights_only and s == "optimizer")]
    dataset, why = _dataset(config)
    files, state = mdl_state.convert_from_zoo(source, mdl.read(source, sections), init, dataset)
    if different := find_difference(state["model"], init.model):
        key, theirs, ours = different
        raise UserError(f"{source}: was trained with model.{key} {theirs}, {params} says {ours}; take the file's value")
    if weights_only:
        files = {"model": files["model"], "optimizer": {}}
    path = write_run(out, files, state, config, WRITER)
    masks = sum(map(is_mask, files["model"]))
    lines = [f"wrote      {path}: {len(files['model']) - masks} weights, {masks} masks, step {state['global_step']}"]
    whole = bool(files["optimizer"])
    if not whole:
        lines.append("           no optimizer state")
    if state["dataset"].startswith("unknown"):
        whole = False
        lines.append(f"           its position in the data is unknown: {why}")
    if bool(masks) != bool(init.sparsity):
        problem = "is sparse, the config is dense" if masks else "is dense, the config is sparse"
        lines.append(f"           the checkpoint {problem}: change trainer.init.sparsity, or load its model alone")
    states = "" if whole else " --load_checkpoint_states model" + (",sparsity" if masks else "")
    states = "" if whole else f" --checkpoint_path {shlex.quote(path)}{states}"
    command = shlex.join(["python", "run.py", "-p", RunFolder(out).config, "-m", "train", "-o", out])
    lines.append(f"next       {command}{states}")
    return "\n".join(lines)


def _dataset(config: Config) -> tuple[str | None, str]:
    """The fingerprint of the config's training data, whose position the step counts; or why there is none."""
    if config.trainer.fit is None:
        return None, "the config has no fit.train_dataloader"
    try:
        return open_shards(config, config.trainer.fit.train_dataloader).fingerprint(), ""
    except UserError as e:
        return None, str(e).splitlines()[0]


def _hf(source: str, out: str, params: str | None) -> str:
    check_checksums(source)
    file = os.path.join(source, "config.json")
    if not exists(file) and exists(os.path.join(source, ADAPTER)):
        raise UserError(
            f"{source}: holds an adapter of PEFT ({ADAPTER}) and no model; import the model that it is for, and name "
            "the adapter with trainer.init.lora.path (or soft_prompt.path)"
        )
    described = read_json(file, add_kind("missing; a Hugging Face model folder has one", source))
    if isinstance(described, dict) and described.get("model_type") == biogpt.KIND:
        section, notes, kind = biogpt.read_model_section(described, file), [], "BioGPT"
        convert = biogpt.convert_weights
    else:
        theirs = hf_sections.read_model(described, file)
        section, notes, kind = theirs.section, theirs.notes, theirs.family.architecture
        convert = partial(hf.convert_from_hf, family=theirs.family)
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
    if params is None:
        optimizer = {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-4}}
        config = Config.model_validate({"trainer": {"init": {"model": section, "optimizer": optimizer}}})
    else:
        config = load_with_model(params, section)
    model: dict[str, Tensor] = {n: x.float() for n, x in weights.items()}
    # v may be dense in a pack whose mask is all live there: such a mask is left out
    model |= {name_mask(n): x.bool() for n, x in found.items() if not bool(x.all())}
    finite = all(bool(torch.isfinite(x).all()) for n, x in model.items() if not is_mask(n))
    state = CheckpointState.of(config.trainer.init, global_step=0, dataset=f"none ({source})", finite=finite).as_json()
    if config.trainer.init.sparsity and len(model) == len(weights):
        print("\n".join(describe_loss(config.trainer.init, weights, out)), flush=True)
    origin = origins.read_origin(source)
    others = {origins.FILE: origin.as_json(), **({} if words is None else {f.TOKENIZER: words})}
    path = write_run(out, {"model": model, "optimizer": {}}, state, config, WRITER, others)
    lines = [f"wrote      {path}: {len(weights)} weights of a {kind}, {len(model) - len(weights)} masks"]
    lines += [f"note       {note}" for note in notes]
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
            raise UserError(f"holds no model.safetensors{why} ({_CONVERT})")
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
