"""At every step of a training run: dead weights, gradients and moments are exactly zero, live ones exactly counted."""

import hashlib
import itertools
import math
from fractions import Fraction

import pytest
import torch

from modelzoo.config.errors import UserError
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters
from modelzoo.sparsity.attach import Sparsity
from tests.support import TINY, batch, config, make_run, tiny, train_step

CUBIC = {"type": "cubic", "init": 0.1, "final": 0.8, "begin": 2, "end": 13}
FREQ, LAST = 3, 12  # steps between updates, and the last of them
UPDATE = {"freq": FREQ, "stop": LAST + 1}
ALGORITHMS = {
    "static": {"algorithm": "static", "sparsity": 0.75},
    "gmp": {"algorithm": "gmp", "sparsity": CUBIC, "update": UPDATE},
    "set": {"algorithm": "set", "sparsity": 0.75, "update": UPDATE},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE,
             "drop_fraction": {"type": "cosine", "init": 0.4, "half_period": 30}},
}  # fmt: skip
SIGMOID = {**CUBIC, "type": "sigmoid"}
VARIANTS = {  # of these in what chooses places; all else is theirs
    "rigl, warm-up": {**ALGORITHMS["rigl"], "regrow_warmup": 6},
    "smet": {"algorithm": "smet", "sparsity": 0.75, "update": UPDATE},
    "granet": {"algorithm": "granet", "sparsity": CUBIC, "update": UPDATE},
    "mest": {"algorithm": "mest", "sparsity": 0.75, "update": UPDATE},
    "chts": {"algorithm": "chts", "sparsity": 0.75, "update": UPDATE},
    "chtss": {"algorithm": "chtss", "sparsity": SIGMOID, "update": UPDATE, "temperature": {**CUBIC, "final": 3.0}},
}
OPTIMIZERS = {
    "AdamW": {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 0.01}},
    "Adam": {"Adam": {"betas": [0.9, 0.999], "weight_decay": 0.01, "lr": 0.01}},
    "SGD": {"SGD": {"momentum": 0.9, "weight_decay": 0.01, "lr": 0.05}},
}
PRECISIONS = {  # precision section, micro-batches
    "float32": ({"enabled": False}, 1),
    "bfloat16 in four parts, clipped by norm": ({"enabled": True, "max_gradient_norm": 0.1}, 4),
    "float32 in two parts, clipped by value": ({"enabled": False, "max_gradient_value": 0.01}, 2),
}


def live(numel: int, sparsity: float) -> int:
    return math.floor((1 - Fraction(str(sparsity))) * numel)


def cubic(step: int) -> float:
    share = min(max((step - CUBIC["begin"]) / (CUBIC["end"] - CUBIC["begin"]), 0.0), 1.0)
    return CUBIC["final"] + (CUBIC["init"] - CUBIC["final"]) * (1 - share) ** 3


def sigmoid(step: int) -> float:
    middle, half = (CUBIC["begin"] + CUBIC["end"]) / 2, (CUBIC["end"] - CUBIC["begin"]) / 2
    rise = [math.tanh(3 * max(-1.0, x / half)) for x in (step - middle, half)]  # a logistic of 6 x, centred
    return CUBIC["init"] + (CUBIC["final"] - CUBIC["init"]) * (rise[0] / rise[1] + 1) / 2


def expected_live(kind: str, numel: int, step: int) -> int:
    last_update = min(step // FREQ * FREQ, LAST)
    curve = {"gmp": cubic, "granet": cubic, "chtss": sigmoid}.get(kind, lambda step: 0.75)
    return live(numel, curve(last_update))


def check(run) -> None:
    for p in run.sparsity.parameters:
        dead = ~p.mask
        assert not p.weight.detach()[dead].any(), p.name
        assert p.weight.grad is None or not p.weight.grad[dead].any(), p.name
        entries = [
            x for x in run.optimizer.state.get(p.weight, {}).values() if x is not None and x.shape == p.mask.shape
        ]
        for x in entries:
            assert not x[dead].any(), p.name


CASES = [
    *itertools.product(ALGORITHMS, OPTIMIZERS, PRECISIONS),
    *((kind, "AdamW", "bfloat16 in four parts, clipped by norm") for kind in VARIANTS),
]


@pytest.mark.parametrize("kind,optimizer,named", CASES)
def test_masked_is_zero_and_live_is_counted_at_every_step(kind, optimizer, named):
    precision, parts = PRECISIONS[named]
    run = make_run(
        model={**TINY, "dropout_rate": 0.1}, sparsity=(ALGORITHMS | VARIANTS)[kind],
        optimizer=OPTIMIZERS[optimizer], precision=precision,
    )  # fmt: skip
    seen = []

    def watch(name):  # look at everything before the optimizer's step and before the gradients are thrown away
        plain = getattr(run.optimizer, name)

        def wrapped(*args, **kwargs):
            assert all(p.weight.grad is not None and p.weight.grad.any() for p in run.sparsity.parameters)
            check(run)
            seen.append(name)
            return plain(*args, **kwargs)

        setattr(run.optimizer, name, wrapped)

    watch("step")
    watch("zero_grad")
    check(run)
    assert len(run.sparsity.parameters) == 2 * 6
    for step in range(1, LAST + 4):
        before = [p.mask.clone() for p in run.sparsity.parameters]
        result = train_step(run, batch(step, uneven=True), parts)
        check(run)
        for p, old in zip(run.sparsity.parameters, before, strict=True):
            assert p.live == int(p.mask.sum()) == expected_live(kind, p.mask.numel(), step), (step, p.name)
            if step % FREQ or step > LAST or kind == "static":
                assert torch.equal(p.mask, old)
        gone = sum(int((old & ~p.mask).sum()) for p, old in zip(run.sparsity.parameters, before, strict=True))
        assert result.churn == gone and not result.skipped
        if kind != "static" and step % FREQ == 0 and step <= LAST:
            assert gone > 0
    assert seen == ["step", "zero_grad"] * (LAST + 3)
    moved = [p.weight.detach()[p.mask] for p in run.sparsity.parameters]
    assert all(x.isfinite().all() and (x != 0).float().mean() > 0.9 for x in moved)


def test_gmp_only_prunes():
    run, masks = make_run(sparsity=ALGORITHMS["gmp"]), []
    for step in range(1, LAST + 4):
        masks.append([p.mask.clone() for p in run.sparsity.parameters])
        train_step(run, batch(step), 1)
    for earlier, later in itertools.pairwise(masks):
        assert all(not (b & ~a).any() for a, b in zip(earlier, later, strict=True))


def digest(sparsity) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.mask.numpy().tobytes()).hexdigest() for p in sparsity.parameters}


@pytest.mark.parametrize("kind", ["static", "set"])
def test_masks_do_not_depend_on_order_or_on_the_global_generator(kind):
    init = config(sparsity=ALGORITHMS[kind]).trainer.init
    shapes = list_parameters(init.model)
    found = []
    for noise, table in ((0, shapes), (1, shapes), (2, dict(reversed(list(shapes.items()))))):
        model = GPTModel(init.model, seed=1)
        torch.manual_seed(noise)
        sparsity = Sparsity.attach(model, table, init.sparsity, seed=7)
        for p in sparsity.parameters:
            p.weight.data = torch.where(p.mask, torch.arange(p.mask.numel()).view(p.mask.shape) + 1.0, 0.0)
        sparsity.update(FREQ, {})
        found.append(digest(sparsity))
    assert found[0] == found[1] == found[2] and len(set(found[0].values())) == len(found[0])


def rigl_rule(weight, mask, dense, k, drop):
    """cerebras.pytorch's RigL on flat Python lists: drop the smallest live weights, grow the largest gradients."""
    keep = math.floor((1 - Fraction(str(drop))) * sum(mask))
    kept = set(sorted((i for i, m in enumerate(mask) if m), key=lambda i: (-abs(weight[i]), i))[: min(keep, k)])
    rest = sorted((i for i in range(len(mask)) if i not in kept), key=lambda i: (-abs(dense[i]), i))
    return kept | set(rest[: k - len(kept)])


@pytest.mark.parametrize("parts", [1, 2])
def test_rigl_equals_its_rule_over_twenty_steps(parts):
    """Masks after optimizer step n (counted from 1), from the weights after it and the dense gradient before it."""
    run = make_run(sparsity={"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3, "stop": 19}})
    by_name = {p.name: p for p in run.sparsity.parameters}
    updated, after_step = [], {}
    plain = run.optimizer.step

    def step_and_look():
        plain()
        after_step.update({n: p.weight.detach().flatten().tolist() for n, p in by_name.items()})

    run.optimizer.step = step_and_look
    for step in range(1, 21):
        b = batch(step)
        denominator = b["attention_mask"].sum()
        for i in range(parts):  # the dense gradient, made apart from the run's own step
            run.model({n: x.chunk(parts)[i] for n, x in b.items()}, denominator).backward()
        dense = {n: p.weight.grad.flatten().tolist() for n, p in by_name.items()}
        run.optimizer.zero_grad()
        masks = {n: p.mask.flatten().tolist() for n, p in by_name.items()}
        train_step(run, b, parts)
        changed = False
        for n, p in by_name.items():
            live_now = set(p.mask.flatten().nonzero().flatten().tolist())
            before = {i for i, m in enumerate(masks[n]) if m}
            changed |= live_now != before
            if step % 3 == 0 and step < 19:
                k = live(p.mask.numel(), 0.75)
                assert live_now == rigl_rule(after_step[n], masks[n], dense[n], k, 0.3), (step, n)
                weights = p.weight.detach().flatten().tolist()
                assert all(weights[i] == (after_step[n][i] if i in before else 0.0) for i in live_now)
            else:
                assert live_now == before
        updated += [step] * changed
    assert updated == [3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize("more", [{}, {"block": [2, 2], "storage": "packed"}], ids=["single", "packed"])
def test_the_warm_up_follows_the_config(more):
    """Off, it is the same run to the bit; on, only the steps of regrown weights are others."""
    section = {"algorithm": "set", "sparsity": 0.75, "update": UPDATE, **more}
    run, off, plain = (make_run(sparsity=section | key) for key in ({"regrow_warmup": 5}, {"regrow_warmup": None}, {}))
    for step in range(1, FREQ + 6):
        for r in (run, off, plain):
            train_step(r, batch(step), 1)
        found = [snapshot(r) for r in (run, off, plain)]
        assert_same(found[1], found[2])
        if step <= FREQ:
            assert_same(found[0], found[1])
        if step == FREQ + 1:
            name = run.sparsity.parameters[0].name
            same = found[0][name] == found[1][name]
            new = found[0][f"{name}/born"] == FREQ
            assert new.any() and torch.equal(same, ~new | (found[1][name] == 0))
            torch.testing.assert_close(found[0][name][new] * 5, found[1][name][new], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind,warmup", [("set", 1), ("rigl", 1), ("set", 100)])
def test_regrown_weights_start_at_zero_with_fresh_moments(kind, warmup):
    run = make_run(sparsity={**ALGORITHMS[kind], "regrow_warmup": warmup})
    for step in range(1, FREQ + 1):
        before = [p.mask.clone() for p in run.sparsity.parameters]
        train_step(run, batch(step), 1)
    grown = [p.mask & ~old for p, old in zip(run.sparsity.parameters, before, strict=True)]
    for p, new in zip(run.sparsity.parameters, grown, strict=True):
        state = run.optimizer.state[p.weight]
        assert new.any() and not p.weight.detach()[new].any()
        assert not state["exp_avg"][new].any() and not state["exp_avg_sq"][new].any()
        assert state["born"][new].unique().tolist() == [FREQ] and not state["born"][~new].any()
    lr = run.lr() / warmup
    train_step(run, batch(9), 1)
    for p, new in zip(run.sparsity.parameters, grown, strict=True):  # Adam's first update is the rate, and no more
        size = p.weight.detach()[new].abs()
        assert size.max() <= lr * 1.0001 and size.median() > 0.9 * lr


def snapshot(run):
    tensors = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for n, p in run.model.named_parameters():
        tensors |= {f"{n}/{k}": v.clone() for k, v in run.optimizer.state[p].items() if v is not None}
    return tensors | {f"{p.name}_mask": p.mask.clone() for p in run.sparsity.parameters}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


POISONS = [
    *itertools.product(ALGORITHMS, [float("nan"), float("inf")]), *((kind, float("nan")) for kind in VARIANTS)
]  # fmt: skip


@pytest.mark.parametrize("kind,poison", POISONS)
def test_a_step_that_is_not_finite_never_was(kind, poison):
    """Even on an update step, with dropout: what follows equals a run that never saw the batch."""
    sections = {"model": {**TINY, "dropout_rate": 0.2}, "sparsity": (ALGORITHMS | VARIANTS)[kind]}
    run, twin = make_run(**sections), make_run(**sections)
    for r in (run, twin):
        for step in range(1, FREQ):
            train_step(r, batch(step), 2)
    before, lr = snapshot(run), run.lr()
    forward = run.model.forward
    run.model.forward = lambda *a: forward(*a) * poison
    assert train_step(run, batch(50), 2).skipped
    run.model.forward = forward
    assert_same(before, snapshot(run))
    assert (run.step, run.skipped, run.optimizer_step, run.lr()) == (FREQ, 1, FREQ - 1, lr)
    assert all(p.dense_grad is None for p in run.sparsity.parameters)
    twin.step, twin.skipped = FREQ, 1
    for step in range(FREQ, 2 * FREQ + 2):
        train_step(run, batch(step), 2)
        train_step(twin, batch(step), 2)
    assert_same(snapshot(run), snapshot(twin))


@pytest.mark.parametrize("kind", ["static", "gmp", "set"])
def test_nan_under_the_mask_changes_nothing(kind):
    run, clean = make_run(sparsity=ALGORITHMS[kind]), make_run(sparsity=ALGORITHMS[kind])
    for p in run.sparsity.parameters:
        p.weight.register_hook(lambda g, p=p: torch.where(p.mask, g, float("nan")))
    for step in range(1, 8):
        result = train_step(run, batch(step), 1)
        assert not result.skipped and result == train_step(clean, batch(step), 1)
    assert_same(snapshot(run), snapshot(clean))


@pytest.mark.parametrize("kind", [{}, {"block": [2, 2]}])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rigl_does_not_grow_where_the_gradient_is_not_finite(value, kind):
    """An overflow under the mask is no score."""
    run = make_run(sparsity={**ALGORITHMS["rigl"], **kind})
    poisoned = {p.name: (~p.mask).flatten().nonzero().flatten()[::2] for p in run.sparsity.parameters}
    for p in run.sparsity.parameters:
        p.weight.register_hook(lambda g, p=p: g.flatten().index_fill(0, poisoned[p.name], value).view_as(g))
    for step in range(1, FREQ + 1):
        assert not train_step(run, batch(step), 1).skipped
    for p in run.sparsity.parameters:
        assert p.live == live(p.mask.numel(), 0.75) and not p.mask.flatten()[poisoned[p.name]].any()


@pytest.mark.parametrize("limit", [None, 0.05, 1e6])
def test_the_clip_norm_is_that_of_live_weights(limit):
    precision = {"enabled": False, "max_gradient_norm": limit} if limit else {"enabled": False}
    run = make_run(sparsity=0.75, precision=precision)
    b = batch(1)
    run.model(b, b["attention_mask"].sum()).backward()
    masks = {p.name: p.mask for p in run.sparsity.parameters}
    grads = {n: torch.where(masks.get(n, torch.tensor(True)), p.grad, 0.0) for n, p in run.model.named_parameters()}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    dense = math.sqrt(sum(float(p.grad.double().square().sum()) for p in run.model.parameters()))
    assert norm < 0.999 * dense
    run.optimizer.zero_grad()
    seen, plain = {}, run.optimizer.step
    run.optimizer.step = lambda: (seen.update({n: p.grad.clone() for n, p in run.model.named_parameters()}), plain())
    assert train_step(run, b, 1).grad_norm == pytest.approx(norm, rel=1e-5)
    factor = min(1.0, (limit or math.inf) / norm)
    for n, g in grads.items():
        torch.testing.assert_close(seen[n], g * factor, rtol=1e-4, atol=1e-9)


def test_groups_take_the_first_match():
    groups = [
        {"sparsity": 0.5, "param_filter": "*proj_q*weight"},
        {"algorithm": "set", "sparsity": 0.9, "param_filter": ["*layers.1.*dense*weight", "*proj_q*"]},
        {"sparsity": 0.25},
    ]
    run = make_run(sparsity=groups)
    expected = {}
    for name, shape in list_parameters(run.init.model).items():
        if shape.kind == "linear":
            expected[name] = 0.5 if "proj_q" in name else 0.9 if "layers.1." in name and "dense" in name else 0.25
    assert {p.name: p.live for p in run.sparsity.parameters} == {
        n: live(list_parameters(run.init.model)[n].numel, s) for n, s in expected.items()
    }
    assert [type(g.algorithm).__name__ for g in run.sparsity.groups] == ["Static", "SET", "Static"]


@pytest.mark.parametrize("filters", [None, "*"])
def test_embeddings_norms_biases_and_head_stay_dense_unless_named(filters):
    section = {"sparsity": 0.5} | ({"param_filter": filters} if filters else {})
    run = make_run(model={**TINY, "share_embedding_weights": False, "use_bias_in_output": True}, sparsity=section)
    kinds = {list_parameters(run.init.model)[p.name].kind for p in run.sparsity.parameters}
    assert kinds == ({"linear", "embedding", "head"} if filters else {"linear"})


def test_a_tied_weight_has_one_mask():
    run = make_run(sparsity={"sparsity": 0.5, "param_filter": "*embedding*"})
    names = [p.name for p in run.sparsity.parameters]
    assert [n for n in names if "word" in n or "lm_head" in n] == ["model.embedding_layer.word_embeddings.weight"]
    for step in range(3):
        train_step(run, batch(step), 1)
    head = run.model.model.lm_head.weight
    assert int((head == 0).sum()) == head.numel() - live(head.numel(), 0.5)


@pytest.mark.parametrize("distribution", ["uniform", "erdos_renyi", "erk"])
def test_targets_and_actual_shares(distribution):
    run = make_run(sparsity={"sparsity": 0.8, "distribution": distribution})
    total = sum(p.mask.numel() for p in run.sparsity.parameters)
    assert run.sparsity.target(0) == pytest.approx(0.8)
    assert run.sparsity.actual() == pytest.approx(1 - sum(int(p.mask.sum()) for p in run.sparsity.parameters) / total)
    assert abs(run.sparsity.actual() - 0.8) < 12 / total + 1e-9
    if distribution != "uniform":
        assert sum(p.live for p in run.sparsity.parameters) == live(total, 0.8)
        assert len({round(p.live / p.mask.numel(), 3) for p in run.sparsity.parameters}) > 1


@pytest.mark.parametrize("key,divisor", [("balance_in_groups", 5), ("balance_out_groups", 7)])
def test_groups_that_do_not_divide_are_refused_by_name(key, divisor):
    with pytest.raises(UserError, match=f"{key}: {divisor} does not divide model.transformer_decoder"):
        make_run(sparsity={"algorithm": "rigl", "sparsity": 0.5, key: divisor})


def test_a_layer_without_a_live_weight_is_refused_by_name():
    init = config(sparsity={"sparsity": 0.5, "init_method": "from_zeros"}).trainer.init
    model = GPTModel(tiny(), seed=0)
    with torch.no_grad():
        model.model.transformer_decoder.layers[1].ffn.ffn[0].linear_layer.weight.zero_()
    with pytest.raises(UserError, match=r"layers\.1\.ffn\.ffn\.0\.linear_layer"):
        Sparsity.attach(model, list_parameters(init.model), init.sparsity, 0)


def test_no_sparsity_does_nothing():
    run, plain = make_run(), make_run(sparsity=[])
    assert run.sparsity.parameters == [] and not run.sparsity.changes and run.sparsity.actual() == 0.0
    for step in range(3):
        assert train_step(run, batch(step), 1) == train_step(plain, batch(step), 1)
