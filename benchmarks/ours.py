"""Our training step on a benchmark's shapes."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from modelzoo.backends.local import Local
from modelzoo.backends.select import Choice
from modelzoo.config.loading.load import validate
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.trainer import Config, Init
from modelzoo.train_state import TrainState
from modelzoo.training.build import build_run


def config(args, sparsity=None, compiled: bool = False, model: Mapping = MappingProxyType({}), **backend) -> Config:
    """A config of ours for these shapes; `model` and `backend` are more keys of those sections."""
    init = {
        "model": {
            "vocab_size": args.vocab, "hidden_size": args.hidden, "num_hidden_layers": args.layers,
            "num_heads": args.heads, "filter_size": 4 * args.hidden, "max_position_embeddings": args.length,
            "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **model,
        },
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 1e-4}},
        "precision": {**precision(args.dtype), "max_gradient_norm": 1.0},
        "sparsity": sparsity,
        "loop": {"max_steps": 10**6},
        "backend": {"torch_compile": compiled, **backend},
    }  # fmt: skip
    return validate(Document({"trainer": {"init": init}}), Config)


def precision(dtype: str) -> dict:
    """The section that computes in `dtype` on any device, as the peers do."""
    scaled = {"loss_scaling_factor": "dynamic"}  # acts in float16 only
    return {"enabled": False} if dtype == "float32" else {"fp16_type": dtype, "emulate": True, **scaled}


def our_run(args, sparsity=None, compiled: bool = False, model: Mapping = MappingProxyType({})) -> TrainState:
    """A TrainState of ours on these shapes."""
    made = config(args, sparsity, compiled, model)
    return build_run(made, Choice(our_backend(args, made.trainer.init), args.device, None))


def our_backend(args, init: Init) -> Local:
    """The device that takes the steps of `our_run`."""
    return Local(torch.device("cuda" if args.device == "cuda" else "cpu"), init.backend, init.precision)
