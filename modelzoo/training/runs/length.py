"""How long a run is: steps, micro-batches, and steps between validations. No torch."""

from modelzoo.config.errors import UserError
from modelzoo.config.required import require_fit
from modelzoo.config.trainer import Config
from modelzoo.data import manifest


def total_steps(config: Config) -> int | None:
    """Optimizer steps of the run; None where it depends on data that is not here."""
    loop, fit = config.trainer.init.loop, config.trainer.fit
    if loop.max_steps or loop.num_steps:
        return loop.max_steps or loop.num_steps
    if loop.num_epochs:
        per_epoch = loop.steps_per_epoch
        if per_epoch is None and fit is not None:
            examples = fit.train_dataloader.num_samples or manifest.count_examples(fit.train_dataloader)
            per_epoch = examples // fit.train_dataloader.batch_size if examples else None
        return loop.num_epochs * per_epoch if per_epoch else None
    return None


def count_steps(config: Config, examples: int) -> int:
    """Optimizer steps of the run, now that the data is at hand: `examples` make an epoch."""
    length = config.trainer.init.loop
    batch_size = require_fit(config).train_dataloader.batch_size
    if length.num_epochs and not length.steps_per_epoch:
        per_epoch = examples // batch_size
        if per_epoch == 0:
            raise UserError(
                f"trainer.fit.train_dataloader: batch_size {batch_size} is larger than an epoch of {examples} examples"
            )
        return length.num_epochs * per_epoch
    steps = total_steps(config)
    if steps is None:
        raise UserError("trainer.init.loop: give max_steps, num_steps or num_epochs (or --max_steps)")
    return steps


def count_micro_batches(config: Config) -> int:
    """Into how many parts a global batch is cut: grad_accum_steps, or as micro_batch_size asks."""
    loader, accum = require_fit(config).train_dataloader, config.trainer.init.loop.grad_accum_steps
    if accum > 1 or not isinstance(loader.micro_batch_size, int):
        return accum
    if loader.batch_size % loader.micro_batch_size:
        raise UserError(
            f"trainer.fit.train_dataloader: micro_batch_size {loader.micro_batch_size} must divide "
            f"batch_size {loader.batch_size}"
        )
    return loader.batch_size // loader.micro_batch_size


def find_eval_interval(frequency: int | float | None, stop: int) -> int | None:
    """Steps between validations: a count, or a share of the run; None for none."""
    if not frequency:
        return None
    return frequency if isinstance(frequency, int) else max(1, round(frequency * stop))
