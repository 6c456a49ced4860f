"""Our sparsity, optimizer and learning rates against cerebras.pytorch's, step by step, on its CPU backend.

Each step starts from the same values on both sides. Left to themselves two implementations part without a fault: scores
that tie but for rounding move another weight, and from then on the runs are of other models. So the other side is held
to ours between its optimizer's update and its masks', within what one step's rounding may do, and then takes our
weights, moments and dense gradients over: its masks come from the same scores and must be the same, on any processor.
Its counters (schedules, update steps, powers of beta) stay its own all along. Its CPU backend runs the traced step as
plain torch, once a batch, so a function of ours can stand between the two.
"""

from functools import partial

import pytest
import torch
from csx_runs import Batches, FakeShards, batch, ours, theirs
from csx_runs import config as config_of

from modelzoo.backends.csx.copy import MOMENTS
from modelzoo.sparsity import masks
from tests.support import train_step

STEPS = 50
APART = 1e-5  # share of the largest gradient that one step's rounding may make: sums of about 64 products, in float32
# Adam divides a moment by its size plus eps. With an eps as large as gradients are here, a gradient's rounding stays
# what it is; with 1e-8 a key's bias, whose gradient is nothing but rounding, would move by the rate either way.
ADAMW = {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-2, "weight_decay": 0.1, "compat": "cstorch"}}
UPDATE = 2e-6  # of a weight: 2 lr APART / eps times the largest moment


def config(sparsity=(), **adapters):
    return config_of(sparsity, ADAMW, **adapters)


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
    """Train both for `steps` steps from the same values: losses, weights and moments are close, masks are equal.

    Returns:
        How many places of masks changed.
    """
    from modelzoo.backends.csx import backend as csx_backend

    monkeypatch.setattr(
        csx_backend, "input_batches", lambda config, vocab, none, start, stop: Batches(prompt)(start, stop)
    )
    mine = ours(c)
    backend, host = theirs(c, tmp_path)
    batches = backend.batches(host, FakeShards(), steps)
    hold, changed = None, 0
    for taken in batches:
        hold = hold or follow(mine, backend)
        NAMES.update({id(p): n for n, p in backend.copy.names.items()})
        CLOCK["step"] = host.step + 1
        before = {n: m.clone() for n, m in mine.sparsity.state_dict().items()}
        a = train_step(mine, batch(mine.step, prompt=prompt), 1)
        b = backend.train_step(host, taken, 1)
        hold()
        assert a.loss == pytest.approx(b.loss, rel=APART), f"loss at step {host.step}"
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=APART), f"gradient norm at step {host.step}"
        for algorithm, _ in backend.copy.algorithms:
            for name, sparse in algorithm.sparse_params.items():
                here = mine.sparsity.state_dict()[f"{name}_mask"]
                assert torch.equal(here, sparse.mask), f"mask of {name} at step {host.step}"
                assert not bool(sparse.param[~sparse.mask].any()), f"dead weight of {name} at step {host.step}"
                changed += int((here ^ before[f"{name}_mask"]).sum())
    return changed


def follow(mine, backend):
    """Hold `backend` to `mine` in each step, before its masks move, from the next step on.

    Returns:
        What to call after each step: where no algorithm acts in the optimizer (dense, frozen), it is held there.
    """
    seen, largest, plain = {}, {}, mine.sparsity.update

    def look(step, moments):
        seen.update({n: p.detach().clone() for n, p in mine.model.named_parameters()})
        for name, p in mine.model.named_parameters():
            seen.update({f"{name}/{k}": x.clone() for k, x in moments.get(p, {}).items() if k in MOMENTS})
        seen.update({f"{p.name}/dense": p.dense_grad for p in mine.sparsity.parameters if p.dense_grad is not None})
        largest.clear()  # of each kind; found here, since the library makes every op under its trace a slow one
        for name, x in seen.items():
            kind = name.partition("/")[2]
            largest[kind] = max(largest.get(kind, 0.0), float(x.abs().max()))
        return plain(step, moments)

    @torch.no_grad()
    def hold():
        if not seen:
            return
        found = {n: p.detach() for n, p in backend.copy.names.items()}
        for name, p in backend.copy.names.items():
            found.update({f"{name}/{k}": x for k, x in backend.copy.optimizer.state[p].items() if k in MOMENTS})
        for algorithm, _ in backend.copy.algorithms:
            dense = getattr(algorithm, "_dense_grads", {})
            found.update({f"{n}/dense": dense[s.param] for n, s in algorithm.sparse_params.items() if s.param in dense})
        assert seen.keys() <= found.keys()
        for name, x in seen.items():
            kind = name.partition("/")[2]
            near = APART * largest[kind] if kind else UPDATE
            torch.testing.assert_close(found[name], x, rtol=0.0, atol=near, msg=lambda m, n=name: f"{n}: {m}")
            found[name].copy_(x)
        seen.clear()

    def update_masks(update, optimizer=None):
        hold()
        update(optimizer)

    mine.sparsity.update = look
    for algorithm, _ in backend.copy.algorithms:
        algorithm.update = partial(update_masks, algorithm.update)
    return hold


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
