"""Load a model to write with, and its tokenizer: a run's checkpoint, masked weights packed, or an exported folder."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice, select_device
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Config, Init
from modelzoo.data import tokenizer
from modelzoo.data.bos import describe_bos, load_with_bos
from modelzoo.data.tokenizer import Tokenizer, check_vocabulary
from modelzoo.data.tokenizer_files import list_places, note_other, require_tokenizer
from modelzoo.evaluation.inference import exported
from modelzoo.evaluation.inference.exported_files import is_exported
from modelzoo.evaluation.prompts.soft_prompt import Soft
from modelzoo.generation.narrow import narrow_weights
from modelzoo.generation.prompts import Prompt
from modelzoo.interop.mdl.state import load_checkpoint
from modelzoo.kernels import few
from modelzoo.kernels.blocks.layout import Layout, layout_from_mask
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPT, GPTModel
from modelzoo.models.quick import use_quick
from modelzoo.models.shapes import check_weights, list_parameters
from modelzoo.names import split_masks
from modelzoo.planning.start_checkpoint import SavedState, check_state, find_checkpoint
from modelzoo.reading import exists
from modelzoo.records import check_record
from modelzoo.sparsity.order import derive_order
from modelzoo.sparsity.parameter import PackedLinear
from modelzoo.sparsity.select import block_of, select_parameters
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.runs.folder import RunFolder


class LoadedModel(NamedTuple):
    """A model to write with."""

    path: str
    model: nn.Module
    choice: Choice
    tokenizer: Tokenizer
    length: int  # positions of the context
    soft: Soft
    ids: int  # that are tokens; the model may have more rows
    notes: tuple[str, ...] = ()

    @property
    def backend(self) -> Backend:
        return self.choice.backend

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, without BOS; an empty one begins where a text of the training data does.

        Raises:
            UserError: a character that the tokenizer has no token for.
        """
        ids, offsets = self.tokenizer.offsets(prompt.text)
        unknown = getattr(self.tokenizer.backend.model, "unk_token", None)
        bad = None if unknown is None else self.tokenizer.backend.token_to_id(unknown)
        at = next((a for i, (a, _) in zip(ids, offsets, strict=True) if i == bad), None)
        if at is None:
            covered = bytearray(len(prompt.text))
            for a, b in offsets:
                covered[a:b] = b"\1" * (b - a)
            at = next((i for i, c in enumerate(prompt.text) if not covered[i] and not c.isspace()), None)
            if at is not None:  # behind what is passed over, tokenizers counts too few characters
                lost = (i for i, c in enumerate(prompt.text) if not c.isspace() and not self.tokenizer.encode(c))
                at = next(lost, at)
        if at is not None:
            raise UserError(
                f"{prompt.where}: {prompt.text[at]!a} (character {at + 1}) is no token of {self.tokenizer.name}"
            )
        return ids or ([] if self.tokenizer.bos is not None else [self.tokenizer.eos])


def load_model(
    path: str, params: str | None = None, words: str | None = None, target: str = "auto", dtype: str = "float32"
) -> LoadedModel:
    """The model at `path`, on the device that `target` leads to.

    Args:
        path: a run folder (fine-tuned: its best checkpoint, else the newest), a step folder, a .mdl, or an export.
        params: the run's config; default: config.yaml of the run folder.
        words: a tokenizer.json or its folder; default: the run's or the export's own.
        dtype: float32 or bfloat16, of weights; what CPUs compute is float32 in either case, but for an export.

    Raises:
        UserError: there is no such model, it does not fit its config, is not finite, or has no tokenizer that fits.
    """
    if is_exported(path):
        return _load_folder(path, words, target, dtype)
    found = find_checkpoint(path)
    file = params or RunFolder.containing(found).config
    config = load(file, Config) if params or exists(file) else None
    if found.endswith(".mdl"):
        if config is None:
            raise UserError(f"{found}: a .mdl does not hold its model's config; name the run's config with -p")
        files, state = load_checkpoint(found, config.trainer.init, None)
    else:
        files, state = checkpoint.load(found, only="model")
    saved = check_state(state, found)
    init = _init_of(saved, config, found)
    if not saved.finite:
        raise UserError(f"{found}: has weights that are not finite; name an earlier checkpoint")
    tokens = _load_words(words, init, config, found)
    check_vocabulary(tokens.name, tokens.size, saved.model.vocab_size)
    choice = choose_device(target, init)
    weights, masks = split_masks(files["model"])
    model = build_model(init, weights, found)
    notes = pack_masked(model, masks, init.sparsity) if choice.backend.kind == "CPU" else []
    if choice.backend.kind == "CPU":
        use_quick(model)
    if dtype == "bfloat16":
        notes.append(narrow_weights(model, compute_narrow=choice.backend.kind != "CPU"))
    model, length = choice.backend.place(model), saved.model.max_position_embeddings
    notes += describe_bos(tokens)
    return LoadedModel(found, model.eval(), choice, tokens, length, Soft.of(init), tokens.size, tuple(notes))


def _init_of(saved: SavedState, config: Config | None, path: str) -> Init:
    """trainer.init with the model, adapters and masks of the checkpoint; the rest is the config's."""
    own: dict[str, Any] = {"model": saved.model, "lora": saved.lora, "soft_prompt": saved.soft_prompt}
    if config is not None:
        own["sparsity"] = config.trainer.init.sparsity
        return config.trainer.init.model_copy(update=own)
    made = {"model": {}, "sparsity": saved.sparsity or []}
    found = check_record({"trainer": {"init": made}}, Config, path, "its state is not what this trainer writes")
    return found.trainer.init.model_copy(update={**own, "sparsity": found.trainer.init.sparsity})


def _load_words(named: str | None, init: Init, config: Config | None, path: str) -> Tokenizer:
    """The tokenizer that is named, else the one next to the config's training data, the run or the checkpoint."""
    places = list_places(config) if config is not None else []
    places += [RunFolder.containing(path).path, os.path.dirname(os.path.abspath(path))]
    try:
        words = tokenizer.load_tokenizer(named or require_tokenizer(init, places, path), bos=init.model.bos_token_id)
        note_other(words, places)
        return words
    except UserError as e:
        if named is None and "--set trainer.init.tokenizer" in str(e):
            raise UserError(str(e).replace("--set trainer.init.tokenizer=PATH", "--tokenizer PATH")) from None
        raise


def choose_device(target: str, init: Init) -> Choice:
    """In float32: one token at a time, what a product costs is reading its weight (`narrow_weights`)."""
    precision = init.precision.model_copy(update={"enabled": False})
    backend = init.backend.model_copy(update={"torch_compile": False, "activation_checkpointing": "none"})
    return select_device(target, init.model_copy(update={"precision": precision, "backend": backend}))


def _load_folder(path: str, words: str | None, target: str, dtype: str) -> LoadedModel:
    choice = choose_device(target, Init.model_validate({"model": {}}))
    model = exported.load_exported(path, choice.backend.device, getattr(torch, dtype)).eval()
    found = load_with_bos(words or path)
    check_vocabulary(found.name, found.size, model.vocab_size)
    computed = "an export: transformers computes it" + (", in bfloat16" if dtype == "bfloat16" else "")
    notes = (computed, *describe_bos(found))
    return LoadedModel(path, model, choice, found, model.length, Soft(), found.size, notes)


@torch.no_grad()
def build_model(init: Init, weights: Mapping[str, Tensor], path: str) -> GPTModel:
    """The model of `init` with its adapters and these weights, which are taken as they are and not copied.

    Raises:
        UserError: a weight is missing, unknown, or of another shape.
    """
    c = init.model
    check_weights({n: x.shape for n, x in weights.items()}, c, path)
    with torch.device("meta"):  # nothing is drawn that is replaced at once
        model = adapt(GPTModel(c), init, [0])
    buffers = dict(GPT(c.model_copy(update={"vocab_size": 1, "num_hidden_layers": 0})).named_buffers())
    for name, x in buffers.items():
        module, _, last = name.rpartition(".")
        setattr(model.model.get_submodule(module), last, x)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    if odd := next((n for n in (*shapes, *weights) if n not in weights or n not in shapes), None):
        raise UserError(f"{path}: {odd} is in its {'weights' if odd in weights else 'config'} alone")
    model.load_state_dict({n: x.float() for n, x in weights.items()}, strict=False, assign=True)
    if c.share_embedding_weights:
        model.model.lm_head.weight = model.model.embedding_layer.word_embeddings.weight
    return model


@torch.no_grad()
def pack_masked(model: GPTModel, masks: Mapping[str, Tensor], groups: tuple[SparsityGroup, ...]) -> list[str]:
    """Store masked weights as their live blocks, where products of few rows are quicker so; returns lines about it."""
    if not masks or not groups:
        return []
    shapes, counts = list_parameters(model.model.config), {True: 0, False: 0}
    for group, names in zip(groups, select_parameters(shapes, groups), strict=True):
        for name in (n for n in names if n in masks):
            path, _, last = name.rpartition(".")
            linear, block = model.get_submodule(path), block_of(group, tuple(masks[name].shape))
            packs = type(linear) is nn.Linear and last == "weight" and group.storage != "masked"
            layout = _find_layout(masks[name], block, group.permute_inputs is not None) if packs else None
            packs = layout is not None and few.pays(layout)
            counts[packs] += 1
            if packs:
                parent, _, key = path.rpartition(".")
                assert isinstance(linear, nn.Linear) and layout is not None
                setattr(model.get_submodule(parent), key, PackedLinear(linear, layout))
    lines = ((True, "packed: their live blocks alone"), (False, "whole, zeros included"))
    return [f"{counts[which]} masked weights are {how}" for which, how in lines if counts[which]]


def _find_layout(mask: Tensor, block: tuple[int, int], permuted: bool) -> Layout | None:
    """The layout of a mask; None where it does not follow the config's pattern. `permuted`: in an order of its own."""
    try:
        return layout_from_mask(mask, block, derive_order(mask, block) if permuted else None)
    except ValueError:
        return None
