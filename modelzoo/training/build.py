"""Build the objects of a run from its config: model, optimizer, sparsity, data."""

import sys
from typing import NamedTuple

from torch import Tensor

from modelzoo import host
from modelzoo.backends import sharding
from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_optimizer
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.trainer import ALL_STATES, Config, Init
from modelzoo.data import tokenizer, tokenizer_files
from modelzoo.data.files import find_shards
from modelzoo.data.hdf5 import Shards
from modelzoo.data.holding import hold_shards
from modelzoo.data.manifest import count_positions, list_folders
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters, list_with_adapters
from modelzoo.optim import groups
from modelzoo.optim.loss_scale import LossScale
from modelzoo.progress import format_size
from modelzoo.sparsity import mup
from modelzoo.sparsity.attach import Sparsity
from modelzoo.train_state import TrainState


class Options(NamedTuple):
    """What the command line adds to the config."""

    target: str = "auto"
    model_dir: str = "./model_dir"
    checkpoint_path: str | None = None  # a run folder, a step folder or a .mdl whose weights to start from
    load_states: tuple[str, ...] = ALL_STATES
    strict: bool = True
    command: str = "run.py"
    restart: bool = False  # start again; what the folder holds is moved aside
    mode: str = "train"


class FirstStep(NamedTuple):
    """All that a run's first training step takes."""

    backend: Backend
    run: TrainState
    batch: dict[str, Tensor]
    micro_batches: int  # into which the batch is cut


def build_run(config: Config, choice: Choice, may_shard: bool = False) -> TrainState:
    """Model, optimizer and sparsity of a config on a device, freshly initialised.

    Args:
        may_shard: take `backend.parallel: shard` at its word where there are several ranks; else each holds all.

    Raises:
        UserError: the weights alone take more memory than this machine has, or a part of the config cannot be shared
            out among ranks.
    """
    init = config.trainer.init
    _check_memory(init)
    section = require_optimizer(init)
    backend, shapes = choice.backend, list_with_adapters(init)
    words = encode_prompt_words(config)
    shard = may_shard and init.backend.parallel == "shard" and backend.ranks.size > 1
    if shard:
        sharding.check(init)
    model = adapt(GPTModel(init.model, seed=init.seed), init, words)
    model = backend.place(model, move=not shard)
    where = backend.device if shard else None
    sparsity = Sparsity.attach(model, list_parameters(init.model), init.sparsity, init.seed, backend.dtype, where)
    shares = sharding.ModelShares(backend, model, sparsity) if shard else None
    if not shard and init.backend.parallel == "shard":
        why = "there is but one" if backend.ranks.size == 1 else "parallel: shard is for pre-training"
        sparsity.notes.append(f"storage    each process holds all: {why}")
    aged = [p.weight for g in sparsity.groups if g.algorithm.ages for p in g.parameters]
    warmup = sparsity.list_warmups()
    ratios = mup.density_ratios(shapes, init.sparsity)
    mup.correct_rates(sparsity, ratios)
    kinds = {n: s.kind for n, s in shapes.items()}
    held = model if shares is None else shares.parameters
    optimizer = groups.build_optimizer(section, held, kinds, init.model, aged, ratios, warmup)
    sparsity.keep_dormant(optimizer.state)
    scale = LossScale.make(init.precision, backend.arithmetic.dtype)
    return TrainState(init, backend.arithmetic.dtype, model, optimizer, sparsity, scale, shares, config=config)


def _check_memory(init: Init) -> None:
    """Refuse a model that cannot be built here: a system that lends memory kills the process later, without a word."""
    need, have = 4 * sum(s.numel for s in list_parameters(init.model).values()), host.total_memory()
    if have is not None and need > have:
        raise UserError(
            f"trainer.init.model: its weights alone take {format_size(need)}, and this machine has "
            f"{format_size(have)}; lower hidden_size or num_hidden_layers"
        )


def encode_prompt_words(config: Config) -> list[int] | None:
    """Token ids of `soft_prompt.words`, by `trainer.init.tokenizer` or the one in the training data's folder.

    Raises:
        UserError: no tokenizer, or one that cannot be read.
    """
    prompt = config.trainer.init.soft_prompt
    if prompt is None or prompt.init != "words":
        return None
    places = tokenizer_files.list_places(config)
    path = tokenizer_files.require_tokenizer(config.trainer.init, places, "trainer.init.soft_prompt.words")
    text = tokenizer.read_tokenizer(path)
    return tokenizer.parse_tokenizer(text, path).encode(prompt.words, add_special_tokens=False).ids


def open_shards(config: Config, loader: DataLoader) -> Shards:
    """The data of one dataloader section, held to its manifests and checked against the model.

    Raises:
        UserError: a shard that is not what its manifest records, of `Shards.open`.
    """
    holding, notes = hold_shards(find_shards(list_folders(loader)))  # before HDF5 opens what may be damaged
    for note in notes:
        print(note, file=sys.stderr)
    m = config.trainer.init.model
    prompt = config.trainer.init.soft_prompt
    shards = Shards.open(loader, m.vocab_size, count_positions(m), prompt.tokens if prompt is not None else 0)
    shards.holding = holding
    return shards
