"""A checkpoint on its way out: its weights checked, with its config, its tokenizer and the end of its texts."""

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.folder import read_manifest
from modelzoo.data.tokenizer import find_end_of_text, parse_tokenizer, read_tokenizer
from modelzoo.data.tokenizer_files import list_files
from modelzoo.finite import are_finite
from modelzoo.interop.adapters.split import merge_lora
from modelzoo.models.shapes import check_weights
from modelzoo.names import name_mask, split_masks
from modelzoo.planning.start_checkpoint import SavedState, check_state
from modelzoo.reading import exists
from modelzoo.records import check_record
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.runs.folder import RunFolder

Tensors = dict[str, Tensor]


class Exportable(NamedTuple):
    """What every format takes from: tensors by our names, masks by the names of their weights."""

    path: str  # the step folder
    state: Mapping[str, Any]
    saved: SavedState
    config: Config
    weights: Tensors
    masks: Tensors
    words: list[str]  # the tokenizer's files
    eos: int | None  # the id that ends a text

    @property
    def model(self) -> GPTConfig:
        return self.saved.model


def read_exportable(path: str, config_file: str | None, tokenizer: str | None) -> Exportable:
    """The checkpoint `path` (a step folder).

    Args:
        config_file: the run's config; without one, what the checkpoint's state holds.
        tokenizer: a tokenizer.json or a folder with one; default: the config's, the data's, the run folder's.

    Raises:
        UserError: its weights are not finite, are not those of its model, or a mask is none.
    """
    files, state = checkpoint.load(path)
    saved = check_state(state, path)
    config = load(config_file, Config) if config_file else _config_of(state, path)
    weights, masks = split_masks(files.get("model", {}))
    check_weights({n: x.shape for n, x in weights.items()}, saved.model, path)
    _check_masks(masks, weights, path)
    odd = next((n for n, x in weights.items() if not are_finite([x])), None)
    if odd is not None or not saved.finite:
        raise UserError(
            f"{path}: has weights that are not finite{f' ({odd})' if odd else ''}; export an earlier checkpoint"
        )
    folders = manifest.list_folders(config.trainer.fit.train_dataloader) if config.trainer.fit else []
    c = saved.model
    eos = next((e for d in folders if (e := _find_end(d)) is not None and 0 <= e < c.vocab_size), None)
    run = RunFolder.containing(path).path
    words = list_files(tokenizer or config.trainer.init.tokenizer, config, run)
    if eos is None and words:  # of a model that was imported, and not trained since
        name = name_tokenizer(words)
        eos = find_end_of_text(parse_tokenizer(read_tokenizer(name), name))
    return Exportable(path, state, saved, config, weights, masks, words, eos)


def merge_adapters(found: Exportable, form: str) -> tuple[Tensors, Tensors, list[str]]:
    """Weights and masks for a format that holds no adapters: LoRA is merged. Also lines about it, for the user.

    Raises:
        UserError: there is a soft prompt, which no weight of the model can take up.
    """
    if found.saved.soft_prompt is not None:
        raise UserError(f"{found.path}: has a soft prompt, for which {form} has no place; export it as a folder")
    if found.saved.lora is None:
        return found.weights, found.masks, []
    weights, masks, notes = merge_lora(found.weights, found.masks, found.saved.lora)
    return weights, masks, [f"LoRA is merged into the weights: {form} holds no adapters", *notes]


def note_unread(line: str) -> None:
    """Report a record that the card leaves out."""
    print(f"note       {line}; the card leaves it out", file=sys.stderr)


def find_run_config(path: str) -> str | None:
    """config.yaml of the run that the step folder `<run>/checkpoints/step_N` belongs to."""
    found = RunFolder.containing(path).config
    return found if exists(found) else None


def _config_of(state: Mapping[str, Any], path: str) -> Config:
    """The config that a checkpoint alone holds: enough for the card."""
    init = {"model": state["model"], "sparsity": state.get("sparsity", [])}
    return check_record({"trainer": {"init": init}}, Config, path, "its state is not what this trainer writes")


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


def name_tokenizer(words: list[str]) -> str:
    """The tokenizer of some files as `data.tokenizer.read_tokenizer` takes it: a file, or the folder of two."""
    pairs = ("vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
    return os.path.dirname(words[0]) or os.curdir if os.path.basename(words[0]) in pairs else words[0]
