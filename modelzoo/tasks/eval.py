"""`-m eval`: validate checkpoints without training; and `--validate_only`: check a config by one step."""

import sys
import time

from modelzoo.backends.select import joining_ranks, select_device
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_fit
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.distributed import Ranks
from modelzoo.files import write_json
from modelzoo.folders import add_kind
from modelzoo.interop.adapters.load import load_adapters
from modelzoo.interop.mdl.state import load_checkpoint
from modelzoo.planning import plan, start_checkpoint
from modelzoo.planning.batches import note_validation
from modelzoo.records import hash_value
from modelzoo.training import console
from modelzoo.training.build import FirstStep, Options, build_run, open_shards
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.launch import checks
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.length import count_micro_batches, count_steps
from modelzoo.training.validation import validate


def evaluate_checkpoints(config: Config, options: Options, every: bool = False) -> None:
    """`-m eval`: loss and perplexity of a checkpoint on the validation sets; `every`: `-m eval_all`, of several."""
    with joining_ranks(options.target, config.trainer.init) as ranks:
        _join_evaluation(config, options, every, ranks)


def _join_evaluation(config: Config, options: Options, every: bool, ranks: Ranks) -> None:
    """What every rank does, each with its share of the batches; rank 0 writes and talks."""
    init, loaders = config.trainer.init, manifest.list_val_loaders(config)
    if not loaders:
        raise UserError("trainer.fit.val_dataloader: missing; eval needs a validation set")
    paths = ranks.first_does(lambda: _checkpoints(config, options, every))
    choice = select_device(options.target, init, ranks=ranks)
    vals = [open_shards(config, loader) for loader in loaders]
    states = tuple(s for s in options.load_states if s != "optimizer")
    if ranks.size > 1:
        data = hash_value([shards.fingerprint() for shards in vals])
        checks.compare_ranks(ranks, config, {"the validation data": data})
    print(choice.describe(), file=sys.stderr)
    for note in note_validation(config):
        print(f"note       {note}", file=sys.stderr)
    results = []
    for path in paths:
        run = build_run(config, choice)
        restore(run, path, *load_checkpoint(path, init, None), None, states, options.strict)
        print(f"checkpoint {path}, step {run.step}", file=sys.stderr)
        for shards, loader in zip(vals, loaders, strict=True):
            score = validate(choice.backend, run, shards, init.loop.eval_steps)
            where = ", ".join(manifest.list_folders(loader))
            facts = {"checkpoint": path, "step": run.step, "data": where}
            results.append({**facts, **score.metrics, "tokens": score.tokens, "examples": score.examples})
            print((f"{path}: " if len(paths) > 1 else "") + f"{where}: {console.describe_score(score)}")
    target = RunFolder(options.model_dir).validation_scores
    ranks.first_does(lambda: write_json(target, results))
    print(f"wrote      {target}", file=sys.stderr)


def _checkpoints(config: Config, options: Options, every: bool) -> list[str]:
    """Checkpoints named by the command line, else the config, else the run folder's newest, or with `every` all."""
    folder = RunFolder.of(config.trainer.init, options.model_dir)
    single, several = config.trainer.validate_, config.trainer.validate_all
    if options.checkpoint_path is not None:
        return [start_checkpoint.find_checkpoint(options.checkpoint_path)]
    if single is not None and single.ckpt_path is not None and not every:
        return [start_checkpoint.find_checkpoint(single.ckpt_path)]
    if several is not None and several.ckpt_paths:
        return [start_checkpoint.find_checkpoint(path) for path in several.ckpt_paths]
    if every:
        found, damaged = checkpoint.whole(folder.checkpoints)
    else:
        newest, damaged = checkpoint.newest(folder.checkpoints)
        found = [] if newest is None else [newest]
    outcome = "; left out" if every else "; taking the one before"
    for problem in damaged:
        print(f"damaged    {problem}{outcome if found else ''}", file=sys.stderr)
    if not found:
        message = (
            f"{folder.checkpoints}: holds no whole checkpoint; name one with --checkpoint_path, or train first with "
            "-m train"
        )
        raise UserError(add_kind(message, folder.path))
    return found


def check_first_step(config: Config, options: Options, compile_layers: bool) -> None:
    """`--validate_only` and `--compile_only` off the CS-2: take one whole step on the first batch and discard it."""
    prepare = _prepare_first_step
    if config.trainer.finetune is not None:
        from modelzoo.finetuning.finetune import prepare_first_step as prepare  # imports all of modelzoo.evaluation
    backend, run, batch, parts = prepare(config, options)
    begin = time.perf_counter()
    step = backend.train_step(run, batch, parts)
    print(
        f"valid: one training step on {backend.describe()} took {time.perf_counter() - begin:.1f} s"
        f"{', compiling included' if compile_layers else ''}: loss {step.loss:.4f}, "
        f"gradient norm {step.grad_norm:.4f}; "
        "nothing was written"
    )


def _prepare_first_step(config: Config, options: Options) -> FirstStep:
    """The first step of a pre-training run."""
    init, fit = config.trainer.init, require_fit(config)
    choice = select_device(options.target, init)
    print(choice.describe(), file=sys.stderr)
    shards = open_shards(config, fit.train_dataloader)
    plan.check_sparsity(init, count_steps(config, len(shards)))
    run = build_run(config, choice)
    load_adapters(run.model, init)
    return FirstStep(choice.backend, run, shards.batch(0), count_micro_batches(config))
