"""Our sparsity, optimizer and learning rates against cerebras.pytorch's, step by step, on its CPU backend."""

import pytest
import torch
from csx_runs import Batches, FakeShards, batch, config, ours, theirs

from modelzoo.sparsity import masks
from tests.support import train_step

STEPS = 50


@pytest.fixture(autouse=True)
def same_draws(monkeypatch):
    """SET grows where a random score is highest: let cerebras.pytorch draw what we draw."""
    import cerebras.pytorch.sparse.set as set_module

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        def rand_like(self, weight):
            name, step = NAMES[id(weight)], CLOCK["step"]
            return masks.random_scores(weight, 3, name, step)

    monkeypatch.setattr(set_module, "torch", Torch())


NAMES: dict[int, str] = {}
CLOCK = {"step": 0}


def compare(c, tmp_path, monkeypatch, steps=STEPS, prompt=0):
    """Train both for `steps` steps: masks equal at each, losses within 1e-5 relative, weights and moments close."""
    from modelzoo.backends import csx_backend

    monkeypatch.setattr(
        csx_backend, "input_batches", lambda config, vocab, none, start, stop: Batches(prompt)(start, stop)
    )
    mine = ours(c)
    backend, host = theirs(c, tmp_path)
    batches = backend.batches(host, FakeShards(), steps)
    changed = 0
    for taken in batches:
        NAMES.update({id(p): n for n, p in backend.names.items()})
        CLOCK["step"] = host.step + 1
        before = {n: m.clone() for n, m in mine.sparsity.state_dict().items()}
        a = train_step(mine, batch(mine.step, prompt=prompt), 1)
        b = backend.train_step(host, taken, 1)
        assert a.loss == pytest.approx(b.loss, rel=1e-5), f"loss at step {host.step}"
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4), f"gradient norm at step {host.step}"
        for algorithm, _ in backend.algorithms:
            for name, sparse in algorithm.sparse_params.items():
                here = mine.sparsity.state_dict()[f"{name}_mask"]
                assert torch.equal(here, sparse.mask), f"mask of {name} at step {host.step}"
                assert not bool(sparse.param[~sparse.mask].any()), f"dead weight of {name} at step {host.step}"
                changed += int((here ^ before[f"{name}_mask"]).sum())
    weights = dict(mine.model.named_parameters())
    for name, p in backend.names.items():
        if "proj_k_dense_layer.bias" not in name:  # the softmax is blind to it: its gradient is rounding, on both sides
            torch.testing.assert_close(p.detach(), weights[name].detach(), rtol=1e-3, atol=1e-5, msg=name)
    return changed


GROUP = {"param_filter": ["*dense_layer.weight", "*linear_layer.weight"], "compat": "cstorch"}
EVERY_5 = {"freq": 5}
STATIC = {
    "random": {"sparsity": 0.75},
    "topk": {"sparsity": 0.6, "init_method": "topk"},
    "checkerboard": {"sparsity": 0.5, "init_method": "checkerboard"},
}
MOVING = {
    "gmp linear": {"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0.1, "slope": 0.012}, "update": EVERY_5},
    "gmp exp": {"algorithm": "gmp", "sparsity": {"type": "exp", "init": 0.0, "gamma": -0.03}, "update": {"freq": 7}},
    # At every step; with regrowth that would be a lottery: weights born together have equal magnitudes for a step.
    "gmp always": {"algorithm": "gmp", "sparsity": {"type": "exp", "init": 0.0, "gamma": -0.03}},
    "gmp cubic": {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.8, "end": 40}, "update": EVERY_5},
    "gmp cycling": {"algorithm": "gmp", "sparsity": [0.3, 0.5, 0.7], "update": {"steps": [3, 10, 11, 30]}},
    "gmp bounded": {
        "algorithm": "gmp",
        "sparsity": {"type": "linear", "init": 0.1, "slope": 0.05, "final": 0.7},
        "update": EVERY_5,
    },
    "set": {"algorithm": "set", "sparsity": 0.75, "update": EVERY_5},
    "set power": {
        "algorithm": "set",
        "sparsity": {"type": "power", "init": 0.9, "beta": 0.99},
        "update": {"freq": 4, "start": 3, "stop": 40},
        "drop_fraction": {"type": "cosine", "init": 0.3, "half_period": 50},
    },
    "set cycling drop": {"algorithm": "set", "sparsity": 0.5, "update": EVERY_5, "drop_fraction": [0.1, 0.3]},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": EVERY_5},
    "rigl cosine": {
        "algorithm": "rigl",
        "sparsity": {"type": "cosine", "init": 0.5, "half_period": 25, "minimum": 0.8},
        "update": {"freq": 3, "start": 6},
        "init_method": "topk",
        "drop_fraction": {"type": "linear", "init": 0.4, "slope": -0.005},
    },
    "rigl rising": {
        "algorithm": "rigl",
        "sparsity": {"type": "linear", "init": 0.3, "slope": 0.01, "final": 0.7},
        "update": EVERY_5,
        "drop_fraction": 0.05,
    },
    "rigl opening": {  # as fine-tuning opens masks step by step: nothing is dropped, the level falls to none
        "algorithm": "rigl",
        "sparsity": {"type": "linear", "init": 0.75, "slope": -0.75 / 40, "final": 0.0},
        "update": {"steps": [*range(0, 41, 5)]},
        "drop_fraction": 0.0,
    },
    "rigl balanced in": {"algorithm": "rigl", "sparsity": 0.7, "update": EVERY_5, "balance_in_groups": 4},
    "rigl balanced out": {"algorithm": "rigl", "sparsity": 0.7, "update": EVERY_5, "balance_out_groups": 8},
}


def test_dense(tmp_path, monkeypatch):
    compare(config(), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", list(STATIC))
def test_static(name, tmp_path, monkeypatch):
    assert compare(config([GROUP | STATIC[name]]), tmp_path, monkeypatch) == 0


@pytest.mark.parametrize("name", list(MOVING))
def test_moving(name, tmp_path, monkeypatch):
    assert compare(config([GROUP | MOVING[name]]), tmp_path, monkeypatch) > 100


def test_groups_of_several_kinds(tmp_path, monkeypatch):
    groups = [
        {"algorithm": "rigl", "sparsity": 0.8, "update": EVERY_5, "param_filter": "*ffn*weight", "compat": "cstorch"},
        {"sparsity": 0.5, "param_filter": "*attn*weight", "compat": "cstorch"},
    ]
    assert compare(config(groups), tmp_path, monkeypatch) > 100


ADAPTED = {
    "prompt alone, over static masks": ({"soft_prompt": {"tokens": 3}}, [GROUP | STATIC["random"]]),
    "prompt and all": ({"soft_prompt": {"tokens": 3, "train": "all", "init": "vocab_mean"}}, []),
    "lora over masks that no longer move": ({"lora": {"r": 2}}, [GROUP | MOVING["rigl"]]),
}


@pytest.mark.parametrize("name", list(ADAPTED))
def test_adapters(name, tmp_path, monkeypatch):
    adapters, sparsity = ADAPTED[name]
    prompt = adapters.get("soft_prompt", {}).get("tokens", 0)
    assert compare(config(sparsity, **adapters), tmp_path, monkeypatch, steps=12, prompt=prompt) == 0
