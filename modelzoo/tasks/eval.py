"""`-m eval`, and the check of `--validate_only`: a model on data, without training it."""

import sys
import time

from torch import Tensor

from modelzoo.backends.base import Backend
from modelzoo.backends.select import select
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.files import write_json
from modelzoo.interop import mdl_state
from modelzoo.interop.adapter_files import load_adapters
from modelzoo.planning import plan, start_checkpoint
from modelzoo.train_state import TrainState
from modelzoo.training import checkpoint, console, state
from modelzoo.training.build import Options, build, open_shards, val_loaders
from modelzoo.training.run_folder import RunFolder
from modelzoo.training.run_length import count_steps, micro_batches
from modelzoo.training.validation import validate


def evaluate(config: Config, options: Options) -> None:
    """`-m eval`: loss and perplexity of a checkpoint on the validation sets."""
    init, loaders = config.trainer.init, val_loaders(config)
    if not loaders:
        raise UserError("trainer.fit.val_dataloader: missing; eval needs a validation set")
    path = _checkpoint(config, options)
    choice = select(options.target, init)
    vals = [open_shards(config, loader) for loader in loaders]
    run = build(config, choice)
    states = tuple(s for s in options.load_states if s != "optimizer")
    state.restore(run, path, *mdl_state.load(path, init, None), None, states, options.strict)
    print(f"checkpoint {path}, step {run.step}\n{choice.describe()}", file=sys.stderr)
    results = []
    for shards, loader in zip(vals, loaders, strict=True):
        score = validate(choice.backend, run, shards, init.loop.eval_steps)
        where = ", ".join(manifest.folders(loader))
        results.append({"checkpoint": path, "step": run.step, "data": where, **score._asdict()})
        print(f"{where}: {console.score(score)}")
    target = RunFolder(options.model_dir).validation_scores
    write_json(target, results)
    print(f"wrote      {target}", file=sys.stderr)


def _checkpoint(config: Config, options: Options) -> str:
    folder = RunFolder.of(config.trainer.init, options.model_dir)
    named = options.checkpoint_path or (config.trainer.validate_.ckpt_path if config.trainer.validate_ else None)
    if named is not None:
        return start_checkpoint.find(named)
    path, damaged = checkpoint.newest(folder.checkpoints)
    for problem in damaged:
        print(f"damaged    {problem}" + ("; taking the one before" if path else ""), file=sys.stderr)
    if path is None:
        raise UserError(
            f"{folder.checkpoints}: holds no whole checkpoint; name one with --checkpoint_path, or train first with "
            "-m train"
        )
    return path


def check(config: Config, options: Options, compile_layers: bool) -> None:
    """`--validate_only` and `--compile_only` off the CS-2: one whole step on the first batch, then thrown away."""
    ready = _first_step
    if config.trainer.finetune is not None:
        from modelzoo.finetuning.finetune import prepare_first_step as ready  # brings all of modelzoo.evaluation
    backend, run, batch, parts = ready(config, options)
    begin = time.perf_counter()
    step = backend.train_step(run, batch, parts)
    print(
        f"valid: one training step on {backend.describe()} took {time.perf_counter() - begin:.1f} s"
        f"{', compiling included' if compile_layers else ''}: loss {step.loss:.4f}, "
        f"gradient norm {step.grad_norm:.4f}; "
        "nothing was written"
    )


def _first_step(config: Config, options: Options) -> tuple[Backend, TrainState, dict[str, Tensor], int]:
    """The device, a run as it starts, its first batch, and into how many parts that is cut."""
    init, fit = config.trainer.init, config.trainer.fit
    if fit is None:
        raise UserError("trainer.fit: missing; a training step needs fit.train_dataloader")
    choice = select(options.target, init)
    print(choice.describe(), file=sys.stderr)
    shards = open_shards(config, fit.train_dataloader)
    plan.check(init, count_steps(config, len(shards)))
    run = build(config, choice)
    load_adapters(run.model, init)
    return choice.backend, run, shards.batch(0), micro_batches(config)
