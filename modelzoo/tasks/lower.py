"""`CSX --validate_only` and `CSX --compile_only`: the training step traced, lowered and, with a cluster, compiled."""

import os
import sys
import time

import torch
from torch import Tensor

from modelzoo.backends import csx_lowering as lowering
from modelzoo.backends import csx_preflight as preflight
from modelzoo.backends.select import csx
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data import manifest
from modelzoo.finetuning.masks import describe_masks, make_config, read_masks
from modelzoo.interop import mdl_state
from modelzoo.models.shapes import with_adapters
from modelzoo.planning import plan, start_checkpoint
from modelzoo.training.build import Options


def lower(config: Config, options: Options, compile_only: bool) -> None:
    """Trace and lower one training step; with `compile_only`, have the cluster compile it too. Needs no data.

    Raises:
        UserError: names the op, module and config key, or what the cluster refused.
    """
    if config.trainer.finetune is not None:
        config = _finetuning(config, options)
    init, fit = config.trainer.init, config.trainer.fit
    if fit is None:
        raise UserError("trainer.fit: missing; a training step needs fit.train_dataloader")
    if init.optimizer is None:
        raise UserError("trainer.init.optimizer: missing; a training step needs one")
    if compile_only:
        backend = preflight.with_defaults(init.backend)
        preflight.require(backend)
        print("preflight  " + "; ".join(preflight.check(config, backend, compile_only=True)), file=sys.stderr)
        print(preflight.sends(config, backend, compile_only=True), file=sys.stderr, flush=True)
    begin = time.perf_counter()
    backend = csx(init, os.path.join(options.model_dir, "cerebras_logs"), "compile" if compile_only else "validate")
    for line in (backend.describe(), *backend.notes):
        print(f"device     {line}", file=sys.stderr)
    folder = backend.lower(_batch(config), fit.train_dataloader.micro_batch_size)
    names = with_adapters(init)
    print(lowering.text(lowering.read(folder), folder, time.perf_counter() - begin, names, plan.first_masks(init)))
    if compile_only:
        print(f"compiled   by the cluster at {backend.config.mgmt_address or 'its address'}; -m train finds it there")
    else:
        print("           lowered, not placed: whether it fits the wafer is for a cluster to say (--compile_only)")


def _finetuning(config: Config, options: Options) -> Config:
    """The config of the step that `-m finetune` takes: its batch, and what becomes of its checkpoint's masks."""
    section, init = config.trainer.finetune, config.trainer.init
    named, masks, start = options.checkpoint_path or section.checkpoint, {}, "the checkpoint"
    if named is not None:
        start = start_checkpoint.find(named)
        masks = read_masks(mdl_state.load(start, init, None)[0]["model"])
    elif section.masks not in (None, "lift"):
        raise UserError(
            "trainer.finetune.checkpoint: missing; the masks to keep or open are a checkpoint's: name a run folder "
            "here or with --checkpoint_path"
        )
    config = make_config(config, masks, start, "encoded by -m finetune")  # there, masks of any pattern are unstructured
    print(f"finetune   {describe_masks(section, masks)}", file=sys.stderr)
    return config


def _batch(config: Config) -> dict[str, Tensor]:
    """A global batch of the right shapes: the step is traced, so its values do not matter."""
    loader = config.trainer.fit.train_dataloader
    names = f.VSL_ROWS if loader.use_vsl else f.ROWS
    return {n: torch.zeros(loader.batch_size, manifest.context(config), dtype=torch.int32) for n in names}
