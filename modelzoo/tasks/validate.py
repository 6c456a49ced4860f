"""`-m eval`, and the check of `--validate_only`: a model on data, without training it."""

import os
import sys
import time

from torch import Tensor

from modelzoo import checkpoint, loop, mdl_state, state
from modelzoo.backends.select import select
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.loop import Run
from modelzoo.tasks import plan, show
from modelzoo.tasks.build import Options, build, micro_batches, open_shards, total_steps, val_loaders


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
        score = loop.validate(run, shards, init.loop.eval_steps)
        where = ", ".join(plan.folders(loader))
        results.append({"checkpoint": path, "step": run.step, "data": where, **score._asdict()})
        print(f"{where}: {show.score(score)}")
    target = os.path.join(options.model_dir, "eval.json")
    checkpoint.write_results(target, results)
    print(f"wrote      {target}", file=sys.stderr)


def _checkpoint(config: Config, options: Options) -> str:
    root = state.checkpoint_root(config.trainer.init, options.model_dir)
    named = config.trainer.validate_.ckpt_path if config.trainer.validate_ else None
    path = options.checkpoint_path or named or checkpoint.newest(root)[0]
    if path is None:
        raise UserError(f"{root}: holds no checkpoint; name one with --checkpoint_path, or train first with -m train")
    return path


def check(config: Config, options: Options, compile_layers: bool) -> None:
    """`--validate_only` and `--compile_only` off the CS-2: one whole step on the first batch, then thrown away."""
    ready = _first_step
    if config.trainer.finetune is not None:
        from modelzoo.tasks.finetune import first_step as ready  # brings all of modelzoo.evaluation
    run, batch, parts = ready(config, options)
    begin = time.perf_counter()
    step = loop.train_step(run, batch, parts)
    print(
        f"valid: one training step on {run.backend.describe()} took {time.perf_counter() - begin:.1f} s"
        f"{', compiling included' if compile_layers else ''}: loss {step.loss:.4f}, "
        f"gradient norm {step.grad_norm:.4f}; "
        "nothing was written"
    )


def _first_step(config: Config, options: Options) -> tuple[Run, dict[str, Tensor], int]:
    """A run as it starts, its first batch, and into how many parts that is cut."""
    init, fit = config.trainer.init, config.trainer.fit
    if fit is None:
        raise UserError("trainer.fit: missing; a training step needs fit.train_dataloader")
    choice = select(options.target, init)
    print(choice.describe(), file=sys.stderr)
    shards = open_shards(config, fit.train_dataloader)
    plan.check(init, total_steps(config, shards))
    return build(config, choice), shards.batch(0), micro_batches(config)
