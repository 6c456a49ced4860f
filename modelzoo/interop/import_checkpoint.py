"""`run.py import`: a Hugging Face GPT-2 folder, or Model Zoo's `.mdl`, as a checkpoint of ours."""

import os
import shutil
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.load import dump, load, resolve, validate
from modelzoo.config.model import GPTConfig
from modelzoo.config.trainer import Config
from modelzoo.data.tokenizer_files import VOCABULARIES
from modelzoo.files import read_json_object, write_text
from modelzoo.interop import hf, hf_config, mdl, mdl_state
from modelzoo.interop.export import MASKS
from modelzoo.models.shapes import list_parameters
from modelzoo.names import is_mask, name_mask
from modelzoo.training import checkpoint
from modelzoo.training.build import open_shards
from modelzoo.training.checkpoint_state import CheckpointState
from modelzoo.training.run_folder import RunFolder


def import_checkpoint(source: str, out: str, params: str | None = None, weights_only: bool = False) -> str:
    """Write `<out>/checkpoints/step_N` and `<out>/config.yaml` from `source`.

    Args:
        source: a GPT-2 folder with safetensors, or a .mdl file.
        params: the config to train on with; a .mdl needs one, a GPT-2 folder replaces its model section.
        weights_only: leave optimizer state out (.mdl).

    Raises:
        UserError: what the source has and a run of ours cannot take, by name; or `out` holds a run already.
    """
    if RunFolder(out).holds_a_run:
        raise UserError(f"{out}: holds a run already; give another folder")
    if os.path.isdir(source):
        return _hf(source, out, params)
    return _mdl(source, out, params, weights_only)


def _mdl(source: str, out: str, params: str | None, weights_only: bool) -> str:
    if params is None:
        raise UserError(f"{source}: a .mdl does not hold its model's config; name the run's config with -p")
    config = load(params, Config)
    init = config.trainer.init
    sections = [s for s in mdl_state.SECTIONS if not (weights_only and s == "optimizer")]
    dataset, why = _dataset(config)
    files, state = mdl_state.convert_from_zoo(source, mdl.read(source, sections), init, dataset)
    if weights_only:
        files = {"model": files["model"], "optimizer": {}}
    path = _write(out, files, state, config)
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
    states = "" if whole else f" --checkpoint_path {path}{states}"
    lines.append(f"next       python run.py -p {RunFolder(out).config} -m train -o {out}{states}")
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
    section = hf_config.read_model_section(
        _json(os.path.join(source, "config.json")), os.path.join(source, "config.json")
    )
    c = GPTConfig.model_validate(section)
    try:
        weights = hf.convert_from_gpt2(_tensors(source), c)
        masks = os.path.join(source, MASKS)
        found = hf.convert_from_gpt2(safetensors.torch.load_file(masks), c) if os.path.exists(masks) else {}
    except (UserError, safetensors.SafetensorError, KeyError) as e:
        raise UserError(f"{source}: {e}") from None
    for name, shape in list_parameters(c).items():
        if name not in weights or tuple(weights[name].shape) != shape.size:
            has = list(weights[name].shape) if name in weights else "nothing"
            raise UserError(f"{source}: config.json asks for {name} {list(shape.size)}, the weights hold {has}")
    if params is None:
        optimizer = {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-4}}
        config = Config.model_validate({"trainer": {"init": {"model": section, "optimizer": optimizer}}})
    else:
        doc = resolve(params, Config)
        doc.data["trainer"]["init"]["model"] = section
        config = validate(doc, Config)
    model: dict[str, Tensor] = {n: x.float() for n, x in weights.items()}
    # v may be dense in a pack whose mask is all live there: such a mask is left out
    model |= {name_mask(n): x.bool() for n, x in found.items() if not bool(x.all())}
    finite = all(bool(torch.isfinite(x).all()) for n, x in model.items() if not is_mask(n))
    state = CheckpointState.of(config.trainer.init, global_step=0, dataset=f"none ({source})", finite=finite).as_json()
    path = _write(out, {"model": model, "optimizer": {}}, state, config)
    copied = [v for v in VOCABULARIES if os.path.exists(os.path.join(source, v))]
    for name in copied:
        shutil.copyfile(os.path.join(source, name), os.path.join(out, name))
    lines = [f"wrote      {path}: {len(weights)} weights of a GPT-2, {len(model) - len(weights)} masks"]
    lines += [f"           {out}: config.yaml{''.join(', ' + v for v in copied)}"]
    if config.trainer.fit is None:
        lines.append(
            "           config.yaml has no data yet: add trainer.fit.train_dataloader, or import with -p CONFIG"
        )
    states = "model,sparsity" if len(model) > len(weights) and config.trainer.init.sparsity else "model"
    command = f"python run.py -p {RunFolder(out).config} -m train -o {out} --checkpoint_path {path}"
    lines.append(f"next       {command} --load_checkpoint_states {states}")
    return "\n".join(lines)


def _write(out: str, files, state: dict[str, Any], config: Config) -> str:
    folder = RunFolder(out)
    path = checkpoint.save(folder.checkpoints, state["global_step"], files, state, None)
    write_text(folder.config, dump(config, "imported by `run.py import`"))
    return path


def _tensors(source: str) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    index = os.path.join(source, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if os.path.exists(index):
        names = sorted(set(_json(index)["weight_map"].values()))
    elif not os.path.exists(os.path.join(source, names[0])):
        pickled = [n for n in os.listdir(source) if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"; {pickled[0]} is pickled and could run code, so it is not loaded" if pickled else ""
        raise UserError(f"holds no model.safetensors{why} (save_pretrained writes one)")
    tensors: dict[str, Tensor] = {}
    for name in names:
        if os.path.basename(name) != name:
            raise UserError(f"model.safetensors.index.json: {name!r} is no file of this folder")
        path = os.path.join(source, name)
        if not os.path.exists(path):
            raise UserError(f"{name} is missing")
        tensors.update(safetensors.torch.load_file(path))
    return tensors


def _json(path: str) -> dict[str, Any]:
    return read_json_object(path, "missing; a Hugging Face model folder has one", "is not a mapping")
