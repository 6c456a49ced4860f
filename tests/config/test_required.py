"""Sections that a config may lack: a command that needs one names it, whoever asks first."""

import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.required import require_finetune, require_fit, require_optimizer
from modelzoo.config.trainer import Config
from modelzoo.finetuning.masks import make_config
from modelzoo.study.matrix.budget import count_flops
from modelzoo.training.runs.length import count_micro_batches, count_steps
from tests.support import TINY, config

BARE = Config.model_validate({"trainer": {"init": {"model": TINY}}})


@pytest.mark.parametrize(
    "ask", [require_fit, count_micro_batches, lambda c: count_steps(c, 8), lambda c: count_flops(c, 1)]
)
def test_training_data_that_is_not_configured_is_named(ask):
    with pytest.raises(UserError, match=r"^trainer\.fit: missing; .* needs fit\.train_dataloader$"):
        ask(BARE)


@pytest.mark.parametrize("ask", [require_finetune, lambda c: make_config(c, {}, "step_1", "data")])
def test_a_finetune_section_that_is_missing_is_named(ask):
    with pytest.raises(UserError, match=r"^trainer\.finetune: missing; for example "):
        ask(BARE)


def test_an_optimizer_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"^trainer\.init\.optimizer: missing; for example "):
        require_optimizer(BARE.trainer.init)


def test_what_is_there_is_returned():
    made = config()
    assert require_fit(made) is made.trainer.fit and require_optimizer(made.trainer.init).name == "AdamW"
