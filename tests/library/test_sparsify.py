"""`sparsify` on other people's modules and optimizers: exact zeros, the trainer's masks, NumPy's, resume."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from modelzoo.config.errors import UserError
from modelzoo.draws import make_generator
from modelzoo.library.sparsify import configure, sparsify
from modelzoo.models.gpt import loss_denominator
from modelzoo.sparsity.parameter import PackedLinear
from tests.support import batch, make_run, train_step

RIGL = {"algorithm": "rigl", "sparsity": 0.8, "update": {"freq": 3}}
SET = {"algorithm": "set", "sparsity": 0.75, "update": {"freq": 2}}
GMP = {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.9, "end": 6}, "update": {"freq": 2}}
PERMUTED = {**GMP, "block": [4, 8], "permute_inputs": "updates"}
GROUPS = {
    "static": {"sparsity": 0.6},
    "gmp": GMP,
    "set": SET,
    "rigl": RIGL,
    "blocks": {**RIGL, "block": [4, 8]},
    "permuted": PERMUTED,
}


class UsersAdam(torch.optim.Optimizer):
    """Adam as somebody else writes it, with names of their own for what it keeps."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                s = self.state[p]
                if not s:
                    s.update(t=0, mean=torch.zeros_like(p), spread=torch.zeros_like(p), noise=torch.ones_like(p))
                s["t"] += 1
                s["mean"].lerp_(p.grad, 0.1)
                s["spread"].lerp_(p.grad**2, 0.01)
                p.sub_(
                    group["lr"] * (s["mean"] / (s["spread"].sqrt() + 1e-8) + 1e-4)
                )  # moves what has no gradient, too


OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, 1e-2),
    "momentum": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.1),
    "users": UsersAdam,
}


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 8))


def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 37, "n_positions": 12}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))


def backward(module: nn.Module, step: int, rows: slice = slice(None)) -> None:
    draw = torch.Generator().manual_seed(step)
    if isinstance(module, nn.Sequential):
        x, y = torch.randn(8, 16, generator=draw)[rows], torch.randn(8, 8, generator=draw)[rows]
        ((module(x) - y) ** 2).sum().div(8).backward()
    else:
        ids = torch.randint(0, 37, (4, 12), generator=draw)
        module(input_ids=ids, labels=ids).loss.backward()


def one_step(module, optimizer, sparsity, number: int) -> int:
    optimizer.zero_grad()
    backward(module, number)
    optimizer.step()
    return sparsity.step()


def everything(module, optimizer, sparsity) -> list[torch.Tensor]:
    state = [x for p in module.parameters() for x in optimizer.state.get(p, {}).values() if isinstance(x, torch.Tensor)]
    return [*module.state_dict().values(), *state, *sparsity.masks.values()]


def equal(a: list, b: list) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", [mlp, gpt2], ids=["mlp", "gpt2"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("group", ["gmp", "rigl", "blocks"])
def test_what_is_masked_is_zero_and_counts_are_exact(make, optimizer, group):
    module = make()
    optimizer = OPTIMIZERS[optimizer](module.parameters())
    sparsity = sparsify(module, optimizer, GROUPS[group])
    weights, moved = dict(module.named_parameters()), 0
    for number in range(7):
        moved += one_step(module, optimizer, sparsity, number)
        for name, mask in sparsity.masks.items():
            p = weights[name]
            zero = [p, p.grad, *(x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor) and x.dim())]
            assert all(not x[~mask].any() for x in zero)
            level = 0.8 if group != "gmp" else sparsity.target
            area = 32 if group == "blocks" else 1
            assert int(mask.sum()) == int((1 - level) * (mask.numel() // area) + 1e-9) * area
    assert moved > 0


def test_conv1d_is_read_as_outputs_by_inputs_and_the_rest_of_gpt2_stays_dense():
    module = gpt2()
    sparsity = sparsify(module, torch.optim.AdamW(module.parameters()), {"sparsity": 0.5, "block": [16, 4]})
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert set(sparsity.masks) == {f"transformer.h.{i}.{n}.weight" for i in range(2) for n in layers}
    mask = sparsity.masks["transformer.h.0.attn.c_attn.weight"]  # [in, out] = [16, 48]
    tiles = mask.t().reshape(3, 16, 4, 4).transpose(1, 2).reshape(12, -1)
    assert mask.shape == (16, 48) and (tiles.all(1) | ~tiles.any(1)).all() and int(tiles.any(1).sum()) == 6
    other = gpt2()
    pairs = sparsify(other, torch.optim.AdamW(other.parameters()), {"nm": [2, 4], "init_method": "topk"}).masks
    assert all((m.t().reshape(-1, 4).sum(1) == 2).all() for m in pairs.values())
    first = sparsity.layers()[0]
    assert (first.shape, first.flops, first.dense_flops) == ((48, 16), 6 * 384, 6 * 768)


def reference(weight, mask, score, k: int) -> np.ndarray:
    """A mask after an update, in NumPy: keep the largest 70 % of live weights, grow where `score` is highest."""
    keep = int(mask.sum()) * 7 // 10
    best = lambda x, n: np.isin(np.arange(x.size), np.lexsort((np.arange(x.size), -x))[:n])
    kept = best(np.where(mask, abs(weight), -np.inf), keep)
    return kept | best(np.where(kept, -np.inf, score), k - keep)


@pytest.mark.parametrize("group", ["set", "rigl"])
def test_masks_are_those_of_a_reference_in_numpy(group):
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    sparsity = sparsify(module, optimizer, {**GROUPS[group], "sparsity": 0.8}, seed=5)
    draw = lambda step: torch.rand(32, 16, generator=make_generator(5, "0.weight", step)).numpy().ravel()
    k = 102  # floor(0.2 * 512)
    mask = np.isin(np.arange(512), np.argsort(-draw(0), kind="stable")[:k])
    dense = mlp()  # whose gradients nobody masks
    for number in range(1, 7):
        dense.load_state_dict(module.state_dict())
        for m in (dense, module):
            m.zero_grad()
            backward(m, number)
        optimizer.step()
        if number % GROUPS[group]["update"]["freq"] == 0:
            score = draw(number) if group == "set" else abs(dense[0].weight.grad.numpy().ravel())
            mask = reference(module[0].weight.detach().numpy().ravel(), mask, score, k)
        sparsity.step()
        np.testing.assert_array_equal(sparsity.masks["0.weight"].numpy().ravel(), mask)


SECTIONS = {
    "SGD": {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1},
    "AdamW": {"lr": 0.02, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1},
    "Adam": {"lr": 0.02, "betas": [0.8, 0.99], "eps": 1e-8, "weight_decay": 0.01},
}
CASES = [(g, "SGD", n) for g in GROUPS for n in (1, 2)] + [
    (g, o, 1) for g in ("rigl", "set") for o in ("AdamW", "Adam")
]


@pytest.mark.parametrize("group,kind,micro_batches", CASES)
def test_masks_and_weights_are_the_trainers(group, kind, micro_batches):
    """For the same seed, names and optimizer; where gradients add up over micro-batches; and where weights regrow."""
    run = make_run(sparsity=GROUPS[group], optimizer={kind: SECTIONS[kind]})
    plain = make_run(optimizer={kind: SECTIONS[kind]})
    groups = [{k: g[k] for k in ("params", "weight_decay")} for g in plain.optimizer.param_groups]
    settings = {k: v for k, v in SECTIONS[kind].items() if k != "weight_decay"}
    optimizer = getattr(torch.optim, kind)(groups, **settings, fused=True)
    sparsity = sparsify(plain.model, optimizer, GROUPS[group], seed=7)  # of support.config
    for number in range(7):
        found = batch(number, uneven=True)
        churn = train_step(run, found, micro_batches).churn
        optimizer.zero_grad()
        whole = loss_denominator(plain.init.model, found["attention_mask"])
        for part in range(micro_batches):
            rows = slice(part * 4 // micro_batches, (part + 1) * 4 // micro_batches)
            plain.model({name: x[rows] for name, x in found.items()}, whole).backward()
        optimizer.step()
        assert sparsity.step() == churn
    assert equal([p.mask for p in run.sparsity.parameters], list(sparsity.masks.values()))
    assert equal(list(run.model.parameters()), list(plain.model.parameters()))


PACKED = {**RIGL, "block": [4, 8], "storage": "packed"}


@pytest.mark.parametrize(
    "group", [SET, RIGL, PACKED, {**PERMUTED, "storage": "packed"}], ids=["set", "rigl", "packed", "permuted"]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_is_bit_equal(group, optimizer):
    make = lambda: mlp()
    whole, resumed = make(), make()
    tuples = [(m, o := OPTIMIZERS[optimizer](m.parameters()), sparsify(m, o, group)) for m in (whole,)]
    for number in range(4):
        one_step(*tuples[0], number)
    saved = copy.deepcopy([x.state_dict() for x in reversed(tuples[0])])
    for number in range(4, 8):
        one_step(*tuples[0], number)
    o = OPTIMIZERS[optimizer](resumed.parameters())
    again = (resumed, o, sparsify(resumed, o, {**group, "seed": 99} if group is RIGL else group))
    for part, state in zip(reversed(again), saved, strict=True):
        part.load_state_dict(state)
    for number in range(4, 8):
        one_step(*again, number)
    assert equal(everything(*tuples[0]), everything(*again))


def test_packed_blocks_train_as_masked_ones_do():
    runs = []
    for storage in ("packed", "masked"):
        module = mlp()
        optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
        optimizer.zero_grad()
        backward(module, 100)
        optimizer.step()  # there is state before there are masks
        sparsity = sparsify(module, optimizer, {**PACKED, "storage": storage})
        for number in range(7):
            one_step(module, optimizer, sparsity, number)
        runs.append((module, sparsity))
    (packed, a), (masked, b) = runs
    assert isinstance(packed[0], PackedLinear) and packed[0].weight.numel() == 96 and "live blocks" in a.summary()
    assert equal(list(a.masks.values()), list(b.masks.values()))
    masked.load_state_dict(a.whole_state_dict())  # a module that was never packed takes it
    torch.testing.assert_close(masked(torch.ones(1, 16)), packed(torch.ones(1, 16)))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_changes_nothing(fused):
    module, other = mlp(), mlp()
    runs = []
    for m in (module, other):
        o = torch.optim.AdamW(m.parameters(), 1e-2, fused=fused)
        runs.append((m, o, sparsify(m, o, RIGL)))
    scaler, number = torch.amp.GradScaler("cpu", init_scale=2.0**4), 0
    for attempt in range(9):
        before = copy.deepcopy(everything(*runs[0])), runs[0][2].steps
        runs[0][1].zero_grad()
        backward(module, attempt)
        scale = scaler.scale(torch.ones(())).item()
        for p in module.parameters():
            p.grad.mul_(scale)
        if attempt in (0, 2, 5):
            module[3].bias.grad[0] = float("inf")
        scaler.step(runs[0][1])
        scaler.update()
        moved = runs[0][2].step()
        if attempt in (0, 2, 5):
            state = {k: v for k, v in enumerate(everything(*runs[0]))}
            same = [torch.equal(x, state[i]) for i, x in enumerate(before[0])] if len(state) == len(before[0]) else []
            assert all(same) and runs[0][2].steps == before[1] and moved == 0
        else:
            one_step(*runs[1], attempt)
            number += 1
    assert runs[0][2].steps == number == 6
    assert equal(list(runs[0][2].masks.values()), list(runs[1][2].masks.values()))
    assert equal(list(module.parameters()), list(other.parameters()))


def test_clipping_measures_live_weights_and_a_nan_under_the_mask_is_nothing():
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    sparsity = sparsify(module, optimizer, RIGL)
    for number in range(3):  # the third is an update's
        optimizer.zero_grad()
        module[0].weight.register_hook(lambda g: g.masked_fill(~sparsity.masks["0.weight"], float("nan")))
        backward(module, number)
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        assert norm.isfinite()
        optimizer.step()
        sparsity.step()
    assert module[0].weight.isfinite().all()


def test_a_batch_that_was_dropped_has_no_part_in_growth():
    """Whether its gradients were set to none or to zero."""
    found = []
    for dropped, none in ((False, True), (True, True), (True, False)):
        module = mlp()
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        sparsity = sparsify(module, optimizer, {**RIGL, "update": {"freq": 1}})
        if dropped:
            backward(module, 50)
        optimizer.zero_grad(set_to_none=none)
        backward(module, 0, slice(4))
        backward(module, 0, slice(4, 8))
        optimizer.step()
        sparsity.step()
        found.append(list(sparsity.masks.values()))
    assert equal(found[0], found[1]) and equal(found[0], found[2])


MEST = {"algorithm": "mest", "sparsity": 0.75, "update": {"freq": 1}, "gamma": 50.0}
GRANET = {"algorithm": "granet", "sparsity": {"type": "cubic", "final": 0.9, "end": 6}, "update": {"freq": 1}}
BY_GRADIENTS = {
    "rigl": {**RIGL, "update": {"freq": 1}}, "granet": GRANET, "mest": MEST,
    "packed rigl": {**RIGL, "update": {"freq": 1}, "block": [4, 4], "storage": "packed"},
    "packed mest": {**MEST, "block": [4, 4], "storage": "packed"},
}  # fmt: skip


@pytest.mark.parametrize("group", BY_GRADIENTS)
@pytest.mark.parametrize("none", [True, False])
def test_wherever_gradients_are_zeroed_masks_follow_those_of_the_step(group, none):
    """Before the backward passes, right after the optimizer's step or after the masks'; a dropped pass has no part."""

    def train(where: str) -> list:
        module = mlp()
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        sparsity, moved = sparsify(module, optimizer, BY_GRADIENTS[group]), 0
        zero = lambda at: at == where and optimizer.zero_grad(set_to_none=none)
        for number in range(3):
            zero("before")
            if where == "dropped":
                backward(module, 50 + number)
                optimizer.zero_grad(set_to_none=none)
            for half in (slice(4), slice(4, 8)):
                backward(module, number, half)
            optimizer.step()
            zero("step")
            moved += sparsity.step()
            zero("masks")
        assert moved > 0
        return [*sparsity.masks.values(), *module.parameters()]

    expected = train("before")
    for where in ("step", "masks", "dropped"):
        assert equal(train(where), expected), where


@pytest.mark.parametrize("group", BY_GRADIENTS)
@pytest.mark.parametrize("automatic", [True, False])
def test_a_step_without_gradients_is_reported(group, automatic):
    """What was set to none between backward and the step: masks stay, in one line that names the order."""
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    if automatic and "packed" not in group:
        sparsity = configure(BY_GRADIENTS[group])
        module.apply(sparsity)
        sparsity.apply(optimizer)
    else:
        automatic, sparsity = False, sparsify(module, optimizer, BY_GRADIENTS[group])
    before = list(sparsity.masks.values())
    for number, none in ((1, True), (2, False)):
        backward(module, number)
        optimizer.zero_grad(set_to_none=none)
        lines = r"changes no masks at step \d+: none of its weights had a gradient when the optimizer stepped"
        mest_has_one = "mest" in group and not none  # all zeros, with which the step was taken
        with contextlib.nullcontext() if mest_has_one else pytest.warns(UserWarning, match=lines):
            optimizer.step()
            if not automatic:
                sparsity.step()
        assert sparsity.steps == number and (mest_has_one or equal(before, list(sparsity.masks.values())))


def test_a_compiled_module_is_sparsified_inside():
    module, plain = mlp(), mlp()
    compiled = torch.compile(module, backend="eager")
    found = []
    for m in (compiled, plain):
        o = torch.optim.SGD(m.parameters(), 0.1)
        s = sparsify(m, o, RIGL)
        for number in range(6):
            o.zero_grad()
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(number))
            m(x).pow(2).mean().backward()
            o.step()
            s.step()
        found.append(s.masks)
    assert list(found[0]) == list(found[1]) and equal(list(found[0].values()), list(found[1].values()))
    with pytest.raises(UserError, match="packed"):
        sparsify(compiled, torch.optim.SGD(compiled.parameters(), 0.1), PACKED)


def test_cerebras_spelling_is_the_same_without_step():
    class Theirs(torch.optim.AdamW):
        def apply(self, f):
            f(self)

    module, other = mlp(), mlp()
    theirs = Theirs(module.parameters(), 1e-2)
    sparsity = configure({"type": "RigL", "schedule": 0.8, "update": {"freq": 3}})
    module.apply(sparsity)
    theirs.apply(sparsity)
    optimizer = torch.optim.AdamW(other.parameters(), 1e-2)
    ours = sparsify(other, optimizer, RIGL)
    for number in range(6):
        theirs.zero_grad()
        backward(module, number)
        theirs.step()
        one_step(other, optimizer, ours, number)
    assert sparsity.steps == 6 and equal(everything(module, theirs, sparsity), everything(other, optimizer, ours))


def test_tied_weights_and_parameter_groups():
    torch.manual_seed(0)
    a = nn.Linear(16, 16)
    b = nn.Linear(16, 16)
    b.weight = a.weight
    module = nn.Sequential(a, nn.ReLU(), b)
    groups = [{"params": [a.weight], "lr": 0.2}, {"params": [a.bias, b.bias]}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    sparsity = sparsify(module, optimizer, {**RIGL, "block": [4, 4], "storage": "packed", "update": {"freq": 1}})
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 16)).pow(2).mean().backward()
        optimizer.step()
        sparsity.step()
    assert list(sparsity.masks) == ["0.weight"] and not a.weight[~sparsity.masks["0.weight"]].any()
    assert a.weight is b.weight and "several places" in sparsity.summary()


def test_filters_freeze_and_other_dtypes():
    marked = mlp()
    marked[3].requires_dense = True
    assert set(sparsify(marked, torch.optim.SGD(marked.parameters(), 0.1), 0.5).masks) == {"0.weight"}
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 8), nn.Linear(8, 4)).to(torch.bfloat16)
    module[3].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1, momentum=0.9)
    assert set(sparsify(module, optimizer, 0.5).masks) == {"2.weight"}
    with pytest.raises(UserError, match="already"):
        sparsify(module, optimizer, 0.5)
    module = copy.deepcopy(module)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1, momentum=0.9)
    groups = [{**SET, "param_filter": ["0.*"]}, {"sparsity": 0.5, "param_filter": ["re:^[23]"]}]
    sparsity = sparsify(module, optimizer, groups)
    for _ in range(4):
        optimizer.zero_grad()
        module(torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)).pow(2).mean().backward()
        optimizer.step()
        sparsity.step()
    for name, mask in sparsity.masks.items():
        assert not module.get_parameter(name)[~mask].any() and mask.float().mean() == (
            0.25 if name == "0.weight" else 0.5
        )
    assert sparsity.layers()[0].flops is None and "-" in sparsity.summary()


def refused(*words: str, config=RIGL, module=None, optimizer=None, **options) -> None:
    module = module or mlp()
    before = copy.deepcopy(list(module.parameters()))
    with pytest.raises(UserError) as e:
        sparsify(module, optimizer or torch.optim.SGD(module.parameters(), 0.1), config, **options)
    assert equal(before, list(module.parameters()))
    assert all(w in str(e.value) for w in words) and "\n" not in str(e.value) and "trainer.init" not in str(e.value)


def test_bad_input_is_one_line():
    refused("'rigle'", "did you mean 'rigl'?", config={"algorithm": "rigle", "sparsity": 0.8})
    refused("unknown key 'sparsity.sparsify'", config={"sparsity": 0.5, "sparsify": 1})
    refused("sparsity.0.param_filter (*atn*): matches no weight; names look like 0.weight",
            config={"sparsity": 0.5, "param_filter": "*atn*"})  # fmt: skip
    refused("sparsity 1.5 must be", config=1.5)
    refused("got 'configs/x.yaml'", config="configs/x.yaml")
    refused("names no group", config=[])
    refused("7 does not divide 0.weight", config={"sparsity": 0.5, "block": [7, 1]})
    refused("no live weight is left in 3.weight", config={"sparsity": 0.997})
    refused("no linear weights", module=nn.Embedding(4, 4))
    refused(
        "3.weight: the optimizer does not hold it", module=(m := mlp()), optimizer=torch.optim.SGD(m[0].parameters())
    )
    refused("optimizer: takes a torch.optim.Optimizer itself, got str", optimizer="adam")
    refused("seed: takes an integer", seed=-1)


def test_calls_out_of_order_are_refused():
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    sparsity = sparsify(module, optimizer, RIGL)
    backward(module, 0)
    sparsity.step()
    with pytest.raises(UserError, match=r"before optimizer.step\(\)"):
        optimizer.step()
    backward(module, 0)
    optimizer.step()
    with pytest.raises(UserError, match="not called after"):
        optimizer.step()
    sparsity.step()
    with pytest.raises(UserError, match="takes what state_dict gave"):
        sparsity.load_state_dict({})
    masks = sparsity.masks
    with pytest.raises(UserError, match=r"0.weight: is in this module alone"):
        sparsity.load_state_dict({"steps": 1, "masks": {"3.weight": masks["3.weight"]}})
    with pytest.raises(UserError, match="no bool tensor"):
        sparsity.load_state_dict({"steps": 1, "masks": {**masks, "0.weight": masks["3.weight"]}})
    other = mlp()
    adam = sparsify(other, torch.optim.AdamW(other.parameters()), RIGL)
    with pytest.raises(UserError, match="does not hold when its weights were regrown"):
        adam.load_state_dict({"steps": 1, "masks": masks})
    with pytest.raises(UserError, match="no module"):
        configure(0.5).apply(optimizer)
    sparsity.detach()
    optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("algorithm", ["set", "smet", "mest", "chts", "rigl"])
def test_a_state_of_another_seed_is_refused_where_it_is_drawn_by(algorithm):
    """Updates of two seeds move other weights, unless the algorithm draws none: then the seed is no part of a state."""
    made = []
    for seed in (1, 2):
        module = mlp()
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        group = {"algorithm": algorithm, "sparsity": 0.75, "update": {"freq": 1}, "init_method": "topk"}
        made.append((module, optimizer, sparsify(module, optimizer, group, seed=seed)))
    state = made[0][2].state_dict()
    one_step(*made[0], 0)
    one_step(*made[1], 0)
    masks, others = (x[2].masks for x in made)
    alike = all(torch.equal(m, others[n]) for n, m in masks.items())
    assert alike == (algorithm == "rigl")
    if alike:
        made[1][2].load_state_dict(state)
    else:
        with pytest.raises(UserError, match=r"^[^\n]*the seeds \[1\] of its groups, this training has \[2\]"):
            made[1][2].load_state_dict(state)
        made[1][2].load_state_dict({k: v for k, v in state.items() if k != "seeds"})  # as earlier versions wrote it


def test_a_training_is_not_copied():
    module = mlp()
    sparsity = sparsify(module, torch.optim.SGD(module.parameters(), 0.1), RIGL)
    for copying in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UserError, match="store its state_dict"):
            copying(sparsity)
