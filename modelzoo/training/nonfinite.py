"""Steps whose loss or gradient is not finite: whether the run goes on after one."""

from modelzoo.config.errors import UserError
from modelzoo.train_state import Step, TrainState


class NotFinite(UserError):
    """A step's loss or gradient is not finite, and the run stops with its weights as they were."""


def check_nonfinite(run: TrainState, step: Step) -> None:
    """End the run at a skipped `step` that no lower loss scale could have saved, where `trainer.init.loop` says so.

    Raises:
        NotFinite: with on_nonfinite: stop, or after loop.max_skipped_steps of them.
    """
    loop = run.init.loop
    what = f"step {run.step}: loss {step.loss}, gradient norm {step.grad_norm}"
    if loop.on_nonfinite == "stop":
        raise NotFinite(
            f"{what}: not finite, so the run stops with its weights as they were; lower the learning rate or "
            "set max_gradient_norm, or skip such steps with trainer.init.loop.on_nonfinite: skip"
        )
    if run.unavoidable > loop.max_skipped_steps:
        raise NotFinite(
            f"{what}: not finite, and loop.max_skipped_steps {loop.max_skipped_steps} are used up; "
            "lower the learning rate"
        )
