"""`run.py export`: a checkpoint as a plain Hugging Face folder, or as Model Zoo's `.mdl`."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from modelzoo.checksums import write_checksums
from modelzoo.config.errors import UserError
from modelzoo.config.load import load
from modelzoo.config.model import GPTConfig
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data import manifest
from modelzoo.data.folder import read_manifest
from modelzoo.data.tokenizer import check_vocabulary
from modelzoo.data.tokenizer_files import copy_files, list_files
from modelzoo.files import making_folder, write_text
from modelzoo.interop import adapters, hf, hf_config, mdl, mdl_state
from modelzoo.interop.markdown import escape
from modelzoo.interop.model_card import render_card
from modelzoo.interop.tensors import write_tensors
from modelzoo.models.shapes import check_weights
from modelzoo.names import is_mask, name_mask, split_masks
from modelzoo.planning.start_checkpoint import check_state, find_checkpoint
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, read_record
from modelzoo.training import checkpoint
from modelzoo.training.run_folder import RunFolder

MASKS = "masks.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Added(Record):
    id: Annotated[int, Field(ge=0, lt=2**31)]
    content: str


class _Vocabulary(Record):
    vocab: Annotated[dict[str, Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class _Tokenizer(Record):
    """What is read here of a tokenizer.json."""

    model: _Vocabulary
    added_tokens: list[_Added] | None = None


def export(
    source: str, out: str, params: str | None = None, tokenizer: str | None = None, dtype: str = "float32"
) -> str:
    """Write the checkpoint `source` (a step folder, or a run folder: its newest) as `out`.

    Args:
        out: a folder to make, or a file name that ends in .mdl.
        params: the run's config; default: config.yaml of the run folder.
        tokenizer: a tokenizer.json or a folder with one; default: the training data's.
        dtype: of the Hugging Face weights.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: no whole checkpoint, a model that no architecture expresses, or `out` exists.
    """
    path = find_checkpoint(source)
    if exists(out):
        raise UserError(f"{out}: exists; give another name, or remove it first")
    config_file = params or _config_beside(path)
    if out.endswith(".mdl"):
        return _mdl(path, out, config_file)
    files, state = checkpoint.load(path)
    saved = check_state(state, path)
    c = saved.model
    family = hf_config.choose_family(c)
    if not saved.finite:
        raise UserError(f"{path}: has weights that are not finite; export an earlier checkpoint")
    config = load(config_file, Config) if config_file else _config_of(state, path)
    weights, masks = split_masks(files.get("model", {}))
    check_weights({n: x.shape for n, x in weights.items()}, c, path)
    _check_masks(masks, weights, path)
    adapter, weights, masks, notes = adapters.split_adapter(weights, masks, saved, family, out)
    tensors = {n: x.to(DTYPES[dtype]) for n, x in hf.convert_to_hf(hf.fold_scales(weights, c), c, family).items()}
    folders = manifest.list_folders(config.trainer.fit.train_dataloader) if config.trainer.fit else []
    words = list_files(tokenizer, config, RunFolder.containing(path).path)
    eos = next((e for d in folders if (e := _find_end(d)) is not None and 0 <= e < c.vocab_size), None)
    texts = {
        "config.json": {**hf_config.make_config_json(c, family, eos), "torch_dtype": dtype, "dtype": dtype},
        "generation_config.json": {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos},
    }
    if f.TOKENIZER in {os.path.basename(v) for v in words}:
        texts["tokenizer_config.json"] = _tokenizer_config(words[0], eos, c)
    name = os.path.basename(os.path.abspath(out))
    run = RunFolder.containing(path).path
    readme = render_card(name, family.architecture, config, state, masks, run, _note_unread)
    if notes:
        readme += "\n## Adapter\n\n" + "".join(f"{escape(line, 2000)}\n" for line in notes)
    other = hf.convert_to_hf(masks, c, family, masks=True) if masks else {}
    _write(out, tensors, other, texts, readme, words, adapter)
    lines = [
        f"wrote      {out}: {family.architecture}, {sum(x.numel() for x in tensors.values()):,} numbers in {dtype}"
    ]
    lines.append(f"           {', '.join(sorted(os.listdir(out)))}")
    lines += [f"           {line}" for line in notes]
    if not words:
        lines.append("           no tokenizer: the training data's folder has none here; name one with --tokenizer")
    lines.append(f'next       transformers.AutoModelForCausalLM.from_pretrained("{out}")')
    return "\n".join(lines)


def _note_unread(line: str) -> None:
    print(f"note       {line}; the card leaves it out", file=sys.stderr)


def _find_end(folder: str) -> int | None:
    """The id of the end of a text by the manifest of a data folder; a manifest that cannot be read is named."""
    try:
        return read_manifest(folder).get("eos_id")
    except UserError as e:
        print(f"note       {e}; the export takes nothing from it", file=sys.stderr)
        return None


def _check_masks(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str) -> None:
    for name, x in masks.items():
        if name not in weights or x.dtype != torch.bool or x.shape != weights[name].shape:
            raise UserError(f"{path}: {name_mask(name)} is no mask of a weight that is there")


def _config_beside(path: str) -> str | None:
    """config.yaml of the run that the step folder `<run>/checkpoints/step_N` belongs to."""
    found = RunFolder.containing(path).config
    return found if exists(found) else None


def _config_of(state: Mapping[str, Any], path: str) -> Config:
    """The config that a checkpoint alone holds: enough for the card."""
    init = {"model": state["model"], "sparsity": state.get("sparsity", [])}
    return check_record({"trainer": {"init": init}}, Config, path, "its state is not what this trainer writes")


def _mdl(path: str, out: str, config_file: str | None) -> str:
    if config_file is None:
        raise UserError(
            f"{path}: has no config.yaml in its run's folder; name the run's config with -p (the optimizer's settings)"
        )
    init = load(config_file, Config).trainer.init
    files, state = checkpoint.load(path)
    saved = check_state(state, path)
    if init.optimizer is None or init.optimizer.name != saved.optimizer:
        raise UserError(f"{config_file}: trainer.init.optimizer: the checkpoint holds {saved.optimizer} state")
    mdl.write(out, mdl_state.convert_to_zoo(files, state, init))
    masks = sum(map(is_mask, files["model"]))
    lines = [
        f"wrote      {out}: step {saved.global_step}, {len(files['model']) - masks} weights, {masks} masks, "
        "optimizer state"
    ]
    if any(g.mup_base_density is not None for g in init.sparsity):
        lines.append(f"           mup_base_density's learning-rate factors stay in {config_file}; Model Zoo has none")
    lines.append(f"next       in Model Zoo ckpt_path: {out}")
    lines.append(f"           here python run.py import {out} RUN -p {config_file}")
    return "\n".join(lines)


def _tokenizer_config(path: str, eos: int | None, c: GPTConfig) -> dict[str, Any]:
    found = read_record(path, _Tokenizer, "missing", "is not a byte-level tokenizer.json")
    ids = {**found.model.vocab, **{t.content: t.id for t in found.added_tokens or ()}}
    check_vocabulary(path, max(ids.values()) + 1, c.vocab_size)
    text = next((t for t, i in ids.items() if i == eos), None)
    special = {"eos_token": text, "bos_token": text, "pad_token": text} if text else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": c.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **special,
    }


def _write(
    out: str, tensors, masks, texts: Mapping[str, Any], readme: str, vocabulary: list[str], adapter=None
) -> None:
    """The whole folder or nothing."""
    try:
        with making_folder(out) as temporary:
            write_tensors(os.path.join(temporary, "model.safetensors"), tensors)
            if masks:
                write_tensors(os.path.join(temporary, MASKS), masks)
            for name, content in texts.items():
                write_text(os.path.join(temporary, name), json.dumps(content, indent=2) + "\n")
            write_text(os.path.join(temporary, "README.md"), readme)
            if adapter is not None:
                (config, weights), (facts, parts) = adapter
                inner = os.path.join(temporary, adapters.FOLDER)
                os.makedirs(inner)
                write_text(os.path.join(inner, config), json.dumps(facts, indent=2) + "\n")
                write_tensors(os.path.join(inner, weights), parts)
                write_checksums(inner)
            copy_files(vocabulary, temporary)
            write_checksums(temporary)
    except OSError as e:
        raise UserError(f"{out}: not written ({e.strerror or e}); nothing of it was kept") from None
