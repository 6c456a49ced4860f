"""Small runs for the CS-2 tests: one config, a run on our CPU and its copy on cerebras.pytorch's CPU backend."""

from types import SimpleNamespace

import torch

from modelzoo.backends.csx.backend import CSX
from modelzoo.backends.select import Choice, select_device
from modelzoo.config.trainer import Config
from modelzoo.train_state import TrainState
from modelzoo.training.build import build_run
from tests.support import train_step

MODEL = {
    "name": "gpt3", "vocab_size": 67, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 40,
    "max_position_embeddings": 16, "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
}  # fmt: skip
ADAMW = {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "compat": "cstorch"}}
WARMUP_COSINE = {
    "SequentialLR": {
        "schedulers": [
            {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 3e-3, "total_iters": 8}},
            {"CosineDecayLR": {"initial_learning_rate": 3e-3, "end_learning_rate": 1e-4, "total_iters": 50}},
        ]
    }
}


def config(
    sparsity=(), optimizer=ADAMW, schedulers=(WARMUP_COSINE,), precision=None, model=None, steps=50, **adapters
) -> Config:
    precision = {"enabled": False, "max_gradient_norm": 1.0} if precision is None else precision
    init = {
        "model": MODEL | (model or {}), "optimizer": optimizer, "schedulers": list(schedulers), "precision": precision,
        "sparsity": sparsity, "loop": {"max_steps": steps}, "seed": 3, **adapters,
    }  # fmt: skip
    fit = {"train_dataloader": {"data_dir": "nowhere", "batch_size": 4}}
    return Config.model_validate({"trainer": {"init": init, "fit": fit}})


def batch(step: int, rows: int = 4, length: int = 16, vocab: int = 67, prompt: int = 0) -> dict[str, torch.Tensor]:
    """Batch of `step`: random tokens, a loss mask with some zeros, `prompt` soft-prompt ids from the fifth place."""
    g = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, vocab, (rows, length + 1), generator=g, dtype=torch.int32)
    ids[:, 4 : 4 + prompt] = torch.arange(vocab, vocab + prompt)
    mask = (torch.rand(rows, length, generator=g) < 0.9).to(torch.int32)
    return {"input_ids": ids[:, :-1].contiguous(), "attention_mask": mask, "labels": ids[:, 1:] % vocab}


class Batches:
    """A picklable input function for cerebras.pytorch's DataLoader."""

    def __init__(self, prompt: int = 0):
        self.prompt = prompt

    def __call__(self, start: int, stop: int):
        return [batch(step, prompt=self.prompt) for step in range(start, stop)]


def ours(c: Config) -> TrainState:
    return build_run(c, select_device("CPU", c.trainer.init))


def theirs(c: Config, folder, run: TrainState | None = None) -> tuple[CSX, TrainState]:
    """cerebras.pytorch's CPU backend, and the host's TrainState that it doubles (a fresh one, equal to `ours(c)`)."""
    backend = CSX(c.trainer.init, str(folder), kind="CPU")
    run = run or build_run(c, Choice(backend, "CSX", None))
    return backend, run


class FakeShards:
    """Enough of `Shards` for `CSX.batches`, whose input function the tests replace."""

    config, vocab_size, prompt_tokens = SimpleNamespace(micro_batch_size=None), 67, 0


def train(run: TrainState, steps: int, after=lambda step: None) -> list:
    """`steps` steps on our side; `after(step)` sees each."""
    done = []
    for _ in range(steps):
        done.append(train_step(run, batch(run.step), 1))
        after(run.step)
    return done
