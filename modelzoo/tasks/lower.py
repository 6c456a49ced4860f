"""`--validate_only` and `--compile_only` on CSX: the training step traced, lowered and, with a cluster, compiled."""

import os
import sys

import torch
from torch import Tensor

from modelzoo.backends.select import select_to_lower
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_fit
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.sections.finetune import Finetune
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data import manifest
from modelzoo.finetuning.masks import describe_masks, make_config, read_masks
from modelzoo.interop.mdl.state import load_checkpoint
from modelzoo.models.shapes import list_with_adapters
from modelzoo.planning import plan, start_checkpoint
from modelzoo.training.build import Options


def lower_step(config: Config, options: Options, compile_only: bool) -> None:
    """Trace and lower one training step; with `compile_only`, have the cluster compile it too. Needs no data.

    Raises:
        UserError: names the op, module and config key, or what the cluster refused.
    """
    if config.trainer.finetune is not None:
        config = _make_finetuning(config, config.trainer.finetune, options)
    init, loader = config.trainer.init, require_fit(config).train_dataloader
    if init.optimizer is None:
        raise UserError("trainer.init.optimizer: missing; a training step needs one")
    backend = select_to_lower(config, os.path.join(options.model_dir, "cerebras_logs"), compile_only)
    for line in (backend.describe(), *backend.notes):
        print(f"device     {line}", file=sys.stderr)
    batch = _make_batch(loader, manifest.find_context(config))
    print(backend.lower(batch, loader.micro_batch_size, list_with_adapters(init), plan.count_first_masks(init)))


def _make_finetuning(config: Config, section: Finetune, options: Options) -> Config:
    """The config of the step that `-m finetune` takes: its batch, and the sparsity of its masks."""
    init = config.trainer.init
    named, masks, path = options.checkpoint_path or section.checkpoint, {}, "the checkpoint"
    if named is not None:
        path = start_checkpoint.find_checkpoint(named)
        masks = read_masks(load_checkpoint(path, init, None)[0]["model"])
    elif section.masks not in (None, "lift"):
        raise UserError(
            "trainer.finetune.checkpoint: missing; the masks to keep or open are a checkpoint's: name a run folder "
            "here or with --checkpoint_path"
        )
    config = make_config(
        config, masks, path, "tokenized by -m finetune"
    )  # there, masks of any pattern are unstructured
    print(f"finetune   {describe_masks(section, masks, init.base_frozen)}", file=sys.stderr)
    return config


def _make_batch(loader: DataLoader, context: int) -> dict[str, Tensor]:
    """A global batch [batch_size, context] of zeros: the step is traced, so its values do not matter."""
    names = f.VSL_ROWS if loader.use_vsl else f.ROWS
    return {n: torch.zeros(loader.batch_size, context, dtype=torch.int32) for n in names}
