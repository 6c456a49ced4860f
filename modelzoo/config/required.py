"""Sections that a config may lack, for commands that cannot do without them. No torch."""

from modelzoo.config.errors import UserError
from modelzoo.config.sections.finetune import Finetune
from modelzoo.config.sections.optim import Optimizer
from modelzoo.config.trainer import Config, Fit, Init

FINETUNE_EXAMPLE = "{task: configs/eval/pubmedqa.yaml, masks: lift}"
OPTIMIZER_EXAMPLE = "{AdamW: {betas: [0.9, 0.95], weight_decay: 0.1}}"


def require_fit(config: Config, purpose: str = "a training step") -> Fit:
    """`trainer.fit`.

    Args:
        purpose: what needs it, for the message.

    Raises:
        UserError: the config has none.
    """
    if config.trainer.fit is None:
        raise UserError(f"trainer.fit: missing; {purpose} needs fit.train_dataloader")
    return config.trainer.fit


def require_finetune(config: Config) -> Finetune:
    """`trainer.finetune`.

    Raises:
        UserError: the config has none.
    """
    if config.trainer.finetune is None:
        raise UserError(f"trainer.finetune: missing; for example {FINETUNE_EXAMPLE}")
    return config.trainer.finetune


def require_optimizer(init: Init) -> Optimizer:
    """`trainer.init.optimizer`.

    Raises:
        UserError: the config has none.
    """
    if init.optimizer is None:
        raise UserError(f"trainer.init.optimizer: missing; for example {OPTIMIZER_EXAMPLE}")
    return init.optimizer
