"""What to lower where a step, or a validation, does not fit the memory of the device."""

import traceback

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_fit
from modelzoo.config.trainer import Config
from modelzoo.progress import format_size
from modelzoo.train_state import TrainState
from modelzoo.training.runs.length import count_micro_batches


class NotEnoughMemory(UserError):
    """The device has no room for a step or a validation; the keys that make it smaller are named."""


def explain_shortage(error: Exception, backend: Backend, run: TrainState, config: Config) -> NotEnoughMemory:
    """One line for an allocation that failed in a run. What the failed call held is given free.

    Args:
        error: what torch raised.
    """
    traceback.clear_frames(error.__traceback__)  # its frames hold activations, and saving the run takes memory too
    peak = backend.memory()
    used = f" ({format_size(peak)} at the most so far)" if peak else ""
    validates = run.unassessed and not run.stepping
    what = f"the validation at step {run.step}" if validates else f"step {run.step + 1}"
    remedies = _shrink_validation(config) if validates else _shrink_step(config)
    if backend.holds_graphs():
        remedies.append("set trainer.init.backend.cuda_graphs: false (captured steps keep their memory)")
    return NotEnoughMemory(f"{what}: not enough memory on this {backend.kind}{used}; {', or '.join(remedies)}")


def _shrink_step(config: Config) -> list[str]:
    loader, init = require_fit(config).train_dataloader, config.trainer.init
    tunes = config.trainer.finetune is not None
    rows, found = -(-loader.batch_size // count_micro_batches(config)), []
    fewer = max((n for n in range(1, rows) if loader.batch_size % n == 0), default=None)
    if fewer is not None and init.loop.grad_accum_steps > 1:
        found.append(f"raise trainer.init.loop.grad_accum_steps to {loader.batch_size // fewer}")
    elif fewer is not None:
        key = "trainer.finetune" if tunes else "trainer.fit.train_dataloader"
        found.append(f"lower {key}.micro_batch_size to {fewer} (now {rows} of {loader.batch_size} rows at once)")
    if init.backend.activation_checkpointing != "layer":
        found.append("set trainer.init.backend.activation_checkpointing: layer")
    return found or ["take shorter sequences or a smaller model"]


def _shrink_validation(config: Config) -> list[str]:
    trainer = config.trainer
    if trainer.finetune is not None:
        return [f"lower trainer.finetune.eval_batch_size (now {trainer.finetune.eval_batch_size})"]
    return ["lower batch_size of the val_dataloader"]
