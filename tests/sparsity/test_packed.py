"""A run on packed blocks is the run on masked-dense weights: same masks, same losses, same checkpoints, less memory."""

import math

import pytest
import torch
from torch import nn

from modelzoo.backends.local import Local
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.kernels.blocks import tiling
from modelzoo.kernels.blocks.layout import layout_of
from modelzoo.kernels.products import batched, choose, gathered, masked, native, packed
from modelzoo.models.decoder import DecoderLayer
from modelzoo.sparsity import storage
from modelzoo.sparsity.parameter import PackedLinear, PackedParameter, SparseParameter
from modelzoo.training.build import build_run
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.background import HostCopy
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.memory import PeakMemory
from tests.sparsity import pairs
from tests.support import TINY, batch, config, make_run, train_step

UPDATE = {"freq": 5, "stop": 61}
RULES = {
    "static": {"sparsity": 0.75, "init_method": "topk"},
    "gmp": {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.75, "end": 50}, "update": UPDATE},
    "set": {"algorithm": "set", "sparsity": [0.75, 0.5], "update": UPDATE, "seed": 5},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE},
}
PATTERNS = {"blocks": {"block": [4, 8]}, "vectors": {"block": [8, 1]}, "inputs": {"shared_inputs": 4}, "single": {}}
# Kernel, block, and the live share up to which benchmarks/linear.py saw it beat the dense product.
KNOWN = [
    *((native, (32, 32), 0.8), (native, (1, 1), 0.35), (batched, (64, 1), 0.5)),
    (masked, (8, 8), 0.0),
]
# Class, dtype, and the same for torch's gathered products in blocks of 16, 32, 64 and 128 rows.
GATHERED = [
    ("plain", torch.float32, (0.0, 0.25, 0.35, 0.4)),
    ("avx2", torch.float32, (0.0, 0.25, 0.35, 0.4)),
    ("amx", torch.float32, (0.0, 0.1, 0.15, 0.25)),
    ("avx512_bf16", torch.bfloat16, (0.0, 0.25, 0.35, 0.4)),
    ("amx", torch.bfloat16, (0.0, 0.0, 0.0, 0.0)),
]
CLIPPED = {"enabled": False, "max_gradient_norm": 0.5}
LR, EPS = 0.01, 1e-3  # eps well above what gradients of norm 0.5 round by: Adam would blow that up to whole updates
UPDATES = 2 * LR * pairs.FLOAT32 * 0.5 / EPS
OPTIMIZERS = {
    "AdamW": {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": LR, "eps": EPS}},
    "SGD": {"SGD": {"momentum": 0.9, "weight_decay": 0.01, "lr": 0.05}},
}


def sparse_run(storage: str, rule: str = "rigl", pattern: str = "blocks", **init):
    init = {"precision": CLIPPED, "optimizer": OPTIMIZERS["AdamW"], **init}
    return make_run(sparsity={**RULES[rule], **PATTERNS[pattern], "storage": storage}, **init)


def save(run, folder) -> str:
    files, facts = snapshot(run, "f")
    return saving.save(str(folder), run.step, files, facts, None)


def read_back(run, path, **kwargs):
    files, facts = checkpoint.load(path)
    restore(run, path, files, facts, "f", **kwargs)
    return run


@pytest.mark.parametrize(
    "rule,pattern", [*((rule, "blocks") for rule in RULES), *(("rigl", p) for p in PATTERNS if p != "blocks")]
)
def test_eighty_steps_are_those_of_the_masked_run(rule, pattern):
    """Each from the same values, within one step's rounding. On four batches over and over, so that it learns."""
    whole, run = (sparse_run(s, rule, pattern) for s in ("masked", "packed"))
    assert {type(p) for p in whole.sparsity.parameters} == {SparseParameter}
    assert {type(p) for p in run.sparsity.parameters} == {PackedParameter}
    step_both, churn = pairs.pair(whole, run, pairs.FLOAT32, UPDATES), 0
    for step in range(80):
        _, b = step_both(batch(step % 4, uneven=True), 2)
        churn += b.churn
    assert (churn > 0) == (rule != "static") and b.loss < 2.5  # from 3.6


@pytest.mark.parametrize("enabled,apart", [(False, pairs.FLOAT32), (True, pairs.BFLOAT16)])
def test_sides_that_compiled_kernels_know(enabled, apart):
    """Blocks of 32 x 32 under RigL, in float32 and in bfloat16."""
    wide, precision = {**TINY, "hidden_size": 64, "filter_size": 128}, {**CLIPPED, "enabled": enabled}
    optimizer = {"AdamW": {"betas": [0.9, 0.95], "lr": 0.003, "eps": EPS}}
    rule = {"algorithm": "rigl", "sparsity": 0.5, "block": [32, 32], "update": {"freq": 10}}
    whole, run = (
        make_run(sparsity={**rule, "storage": s}, model=wide, precision=precision, optimizer=optimizer)
        for s in ("masked", "packed")
    )
    assert {p.block for p in run.sparsity.parameters} == {(32, 32)}
    step_both = pairs.pair(whole, run, apart, 2 * 0.003 * min(apart * 0.5 / EPS, 1))
    for step in range(40):
        _, b = step_both(batch(step % 4))
    assert b.loss < 3.3  # from 3.6


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_a_packed_run_resumes_bit_by_bit(rule, optimizer, tmp_path):
    init = {"optimizer": OPTIMIZERS[optimizer], "model": {**TINY, "dropout_rate": 0.1}}
    run = sparse_run("packed", rule, **init)
    for step in range(7):
        train_step(run, batch(step), 2)
    again = read_back(sparse_run("packed", rule, seed=7, **init), save(run, tmp_path))
    for step in range(7, 17):
        assert train_step(run, batch(step), 2) == train_step(again, batch(step), 2)
    for a, b in zip(snapshot(run, "f")[0].values(), snapshot(again, "f")[0].values(), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("there,back", [("packed", "masked"), ("masked", "packed")])
def test_a_checkpoint_knows_no_storage(rule, there, back, tmp_path):
    """Written by one storage, read by the other: every tensor the same, and training goes on alike."""
    run = sparse_run(there, rule)
    for step in range(7):
        train_step(run, batch(step), 1)
    moved = read_back(sparse_run(back, rule, seed=9), save(run, tmp_path))
    for a, b in zip(snapshot(run, "f")[0].values(), snapshot(moved, "f")[0].values(), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name
    moved.init = run.init  # dropout is off; the seed is the run's
    step_both = pairs.pair(run, moved, pairs.FLOAT32, UPDATES)
    for step in range(7, 27):
        step_both(batch(step))


@pytest.mark.parametrize("states", [("model",), ("model", "sparsity"), ("optimizer", "sparsity")])
def test_parts_of_a_checkpoint_go_into_packed_weights(states, tmp_path):
    """The same parts into either storage give the same run, from a dense checkpoint where masks are drawn anew."""
    source = make_run(precision=CLIPPED) if states == ("model",) else sparse_run("masked", "static")
    for step in range(4):
        train_step(source, batch(step), 1)
    path = save(source, tmp_path)
    runs = [read_back(sparse_run(s, "static", seed=3), path, states=states) for s in ("masked", "packed")]
    first, second = (snapshot(r, "f")[0] for r in runs)
    for kind in first:
        assert first[kind].keys() == second[kind].keys()
        assert all(torch.equal(first[kind][n], second[kind][n]) for n in first[kind])
    steps = [train_step(r, batch(5), 1).loss for r in runs]
    assert steps[0] == pytest.approx(steps[1], abs=1e-5)


@pytest.mark.parametrize("ours", [{"block": [4, 8]}, {"shared_inputs": 4}, {"nm": [1, 4]}])
def test_masks_of_another_pattern_are_refused_and_change_nothing(ours, tmp_path):
    path = save(make_run(sparsity=0.75), tmp_path)
    run = make_run(sparsity={"sparsity": 0.75, **ours}, seed=8)
    before = {n: x.clone() for n, x in snapshot(run, "f")[0]["model"].items()}
    key = next(iter(ours))
    with pytest.raises(UserError, match=rf"proj_q\S+ is not of the config's pattern \({key}: .*states model") as e:
        read_back(run, path)
    assert "\n" not in str(e.value)
    assert all(torch.equal(x, before[n]) for n, x in snapshot(run, "f")[0]["model"].items())
    read_back(run, path, states=("model",))
    assert all(p.live * 4 == p.mask.numel() for p in run.sparsity.parameters)


def list_tensors(run) -> list[torch.Tensor]:
    moments = [x for p in run.model.parameters() for x in run.optimizer.state[p].values()]
    parts = [x for p in run.sparsity.parameters for x in p.layout.parts]
    return [*run.model.parameters(), *moments, *parts, *run.sparsity.explored.bits.values()]


@pytest.mark.parametrize("rule", ["static", "rigl"])
def test_one_tensor_at_a_time_is_whole(rule, tmp_path):
    """While a checkpoint is copied to the host and while it is loaded: beyond what is packed there is one weight."""
    wide = {**TINY, "hidden_size": 64, "filter_size": 256}
    run, again = (sparse_run("packed", rule, model=wide, seed=s) for s in (1, 2))
    for step in range(6):
        train_step(run, batch(step), 1)
    wholes = [4 * p.shape.numel() for p in run.sparsity.parameters]
    room = max(wholes) * 11 // 10  # numbers of blocks too
    assert len(wholes) > 6 and sum(wholes) > 4 * room
    files, facts = snapshot(run, "f")
    host = HostCopy()
    first = {s: {k: x.clone() for k, x in part.items()} for s, part in host.take(files).items()}
    there = [x for part in host.take(files).values() for x in part.values()]  # memory that the next copy takes again
    with PeakMemory([*list_tensors(run), *there]) as copying:
        copied = host.take(files)
    assert copying.peak < room
    assert all(torch.equal(x, first[s][k]) for s, part in copied.items() for k, x in part.items())
    held = [*list_tensors(again), *there]
    with PeakMemory(held) as loading:
        restore(again, str(tmp_path), copied, facts, "f")
    new = sum(x.nbytes for x in list_tensors(again))  # live blocks that take the place of those that were drawn
    assert loading.peak < new + room
    for part, theirs in zip(copied.values(), snapshot(again, "f")[0].values(), strict=True):
        assert all(torch.equal(x, theirs[k]) for k, x in part.items()) and part.keys() == theirs.keys()


def test_gradients_and_moments_exist_for_live_blocks_alone():
    run = sparse_run("packed", "static")
    seen, plain = {}, run.optimizer.step
    run.optimizer.step = lambda: (seen.update({p.name: p.weight.grad for p in run.sparsity.parameters}), plain())
    train_step(run, batch(0), 1)
    for p in run.sparsity.parameters:
        live = math.prod(p.shape) // 4
        rows, columns = p.block
        assert p.live == live and tuple(p.weight.shape) == (live // (rows * columns), rows, columns)
        assert seen[p.name].shape == p.weight.shape
        entries = [x for x in run.optimizer.state[p.weight].values() if x.dim()]
        assert len(entries) == 2 and all(x.numel() == live for x in entries)
    names = dict(run.model.named_parameters())
    assert all(names[p.name] is p.weight for p in run.sparsity.parameters)
    assert names.keys() == dict(make_run().model.named_parameters()).keys()


def test_the_dense_gradient_is_made_on_update_steps_alone(monkeypatch):
    made = []
    monkeypatch.setattr(packed, "probe", lambda layout, make=packed.probe: (made.append(step), make(layout))[1])
    run = sparse_run("packed", "rigl")
    for step in range(1, 12):
        train_step(run, batch(step), 4)
        assert all(p.module.probe is None and p.dense_grad is None for p in run.sparsity.parameters)
    assert sorted(set(made)) == [5, 10] and len(made) == 2 * len(run.sparsity.parameters)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_is_not_finite_never_was(rule):
    run, twin = sparse_run("packed", rule), sparse_run("packed", rule)
    for r in (run, twin):
        for step in range(4):
            train_step(r, batch(step), 2)
    forward = run.model.forward
    run.model.forward = lambda *a: forward(*a) * math.nan
    assert train_step(run, batch(50), 2).skipped  # the fifth is an update step
    run.model.forward = forward
    twin.step, twin.skipped = 5, 1
    for step in range(5, 12):
        assert train_step(run, batch(step), 2)._replace(lr=0) == train_step(twin, batch(step), 2)._replace(lr=0)


def test_what_is_packed_and_what_is_said():
    run = sparse_run("packed", "static")
    (note,) = run.sparsity.notes
    assert note.startswith("storage    12 weights live blocks alone: [4, 8] blocks in float32 on cpu: ")
    assert sum(isinstance(m, PackedLinear) for m in run.model.modules()) == 12
    assert sparse_run("masked", "static").sparsity.notes == []
    tiny = sparse_run("auto", "static")  # nothing to gain at width 16
    assert not any(isinstance(m, PackedLinear) for m in tiny.model.modules())
    assert "whole under masks: no gain is known" in tiny.sparsity.notes[0]
    assert "their sparsity changes" in sparse_run("auto", "gmp").sparsity.notes[0]
    unstructured = sparse_run("auto", "static", "single")  # masks of single weights are packed where that is asked for
    assert unstructured.sparsity.notes == [] and type(unstructured.sparsity.parameters[0]) is SparseParameter
    section = {"sparsity": 0.5, "block": [1, 4], "storage": "packed", "param_filter": ["*word_emb*", "*proj_q*weight"]}
    mixed = make_run(sparsity=section)
    assert [type(p) for p in mixed.sparsity.parameters] == [SparseParameter, PackedParameter, PackedParameter]
    assert any("Embedding has no packed form" in note for note in mixed.sparsity.notes)
    train_step(mixed, batch(0), 1)


@pytest.mark.parametrize("kernel,block,densest", KNOWN)
@pytest.mark.parametrize("inputs", [256, 224])
def test_auto_packs_up_to_the_live_share_that_the_kernel_is_known_for(kernel, block, densest, inputs):
    order = torch.arange(256 // block[0] * inputs // block[1]).view(256 // block[0], -1)
    for live in range(1, 21):
        layout = layout_of(order * 20 < live * order.numel(), block)
        assert storage.pays(layout, kernel, torch.float32) is (inputs == 256 and layout.density <= densest)


@pytest.mark.parametrize("kind,dtype,densest", GATHERED)
def test_gathered_products_pay_where_dense_ones_are_slow(kind, dtype, densest, monkeypatch):
    monkeypatch.setattr(choose.processor, "processor_class", lambda: kind)
    for rows, share in zip((16, 32, 64, 128), densest, strict=True):
        layout = layout_of(torch.ones(256 // rows, 8, dtype=torch.bool), (rows, 32))
        assert choose.find_densest(layout, gathered, dtype) == share
        permuted = layout_of(layout.block_mask(), layout.block, torch.arange(256).flip(0))
        assert choose.find_densest(permuted, gathered, dtype) == max(0.0, share - 0.1)
        assert choose.find_densest(layout, batched, dtype) == (0.1 if densest == (0.0,) * 4 else 0.5)


@pytest.mark.parametrize("pattern", [{"block": [32, 32]}, {"shared_inputs": 4}])
def test_auto_asks_the_kernel_that_serves_the_pattern_here(pattern):
    model = {**TINY, "hidden_size": 256, "filter_size": 512, "num_hidden_layers": 1}
    for sparsity in (0.75, 0.6, 0.3, 0.1):
        run = make_run(model=model, sparsity={"sparsity": sparsity, **pattern})
        (group,) = run.sparsity.groups
        for p in group.parameters:
            layout = layout_of(tiling.gathered(p.mask, p.block), p.block)
            kernel = choose.choose_kernel(layout, torch.device("cpu"), torch.float32)
            assert isinstance(p, PackedParameter) is (
                layout.density <= choose.find_densest(layout, kernel, torch.float32)
            )
        assert sparsity != 0.1 or not isinstance(p, PackedParameter)


def test_a_packed_linear_computes_what_the_masked_one_does():
    run, whole = sparse_run("packed", "static"), sparse_run("masked", "static")
    for name, module in run.model.named_modules():
        if isinstance(module, PackedLinear):
            x = torch.randn(5, module.layout.shape[1])
            other = whole.model.get_submodule(name)
            assert isinstance(other, nn.Linear) and module.bias is not None
            torch.testing.assert_close(module(x), other(x))


def test_a_compiled_layer_takes_packed_weights_whose_blocks_move():
    """One graph without breaks, and no new one when RigL moves blocks: the layout is data to it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run, plain = sparse_run("packed", "rigl"), sparse_run("packed", "rigl")
    for layer in run.model.model.transformer_decoder.layers:
        layer.compile(backend="eager", fullgraph=True)
    step_both, graphs = pairs.pair(plain, run, pairs.FLOAT32, UPDATES), []
    for step in range(1, 17):
        step_both(batch(step))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[-1] == graphs[9]  # after the first update step with a probe, and one without


def test_a_compiled_layer_takes_packed_weights_that_become_fewer(monkeypatch):
    """A graph for the first sizes, one for all others, one for a single block: at eight the compiler would give up."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch._dynamo.config, "force_parameter_static_shapes", True)  # as it was, afterwards
    monkeypatch.setattr(DecoderLayer, "compile", lambda self: nn.Module.compile(self, backend="eager", fullgraph=True))
    rule = {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.9, "end": 24}, "update": {"freq": 2}}
    section = {**rule, "block": [4, 4], "storage": "packed"}
    whole = config(sparsity=section, backend={"torch_compile": True})
    local = Local(torch.device("cpu"), whole.trainer.init.backend, whole.trainer.init.precision)
    run, sizes = build_run(whole, Choice(local, "", None)), set()
    for step in range(25):
        local.train_step(run, batch(step), 1)
        sizes.add(run.sparsity.parameters[0].live)
    assert len(sizes) > 8 and torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
    torch._dynamo.reset()
