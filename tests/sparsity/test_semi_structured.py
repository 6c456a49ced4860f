"""2:4 groups on sparse tensor cores: the same run as under masks, whose products see weights that are 2:4.

There is no GPU here: the compressor is replaced by one that checks what it is given and hands it back.
"""

import pytest
import torch
from torch import nn

from modelzoo.kernels.products import semi_structured
from modelzoo.kernels.products.semi_structured import is_two_of_four
from modelzoo.models.gpt import GPTModel
from modelzoo.sparsity.parameter import SemiStructuredLinear, SparseParameter
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.sparsity import pairs
from tests.support import batch, cpu, make_run, tiny, train_step

UPDATE = {"freq": 3, "stop": 100}
RULES = {
    "static": {"init_method": "topk"},
    "set": {"algorithm": "set", "update": UPDATE, "seed": 5},
    "rigl": {"algorithm": "rigl", "update": UPDATE},
}
CLIPPED = {"enabled": False, "max_gradient_norm": 0.5}
LR, EPS = 0.01, 1e-3  # as in test_packed: updates part by rounding alone
UPDATES = 2 * LR * pairs.FLOAT32 * 0.5 / EPS
ADAM = {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": LR, "eps": EPS}}


def sparse_run(rule: str = "static", **fields):
    init = {"precision": CLIPPED, **{k: fields.pop(k) for k in ("precision", "seed", "lora") if k in fields}}
    return make_run(sparsity={"nm": [2, 4], "storage": "compressed", **RULES[rule], **fields}, optimizer=ADAM, **init)


def compressed_modules(run) -> list[str]:
    return [n for n, m in run.model.named_modules() if isinstance(m, SemiStructuredLinear)]


@pytest.fixture
def cores(monkeypatch):
    """A device with sparse tensor cores, as far as the code can tell; the shapes of what was compressed."""
    seen = []

    def compress(weight):
        assert is_two_of_four(weight != 0) and (weight != 0).any()
        seen.append(tuple(weight.shape))
        return weight.clone()

    monkeypatch.setattr(semi_structured, "unavailable", lambda *_: "")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)
    return seen


@pytest.mark.parametrize("precision", [{"enabled": False}, {"enabled": True}])
def test_a_linear_without_sparse_tensor_cores_computes_the_same_bits(precision):
    run = sparse_run(precision=precision)
    linears = [m for m in run.model.modules() if type(m) is nn.Linear]
    for linear in linears:
        x = torch.randn(3, 5, linear.in_features, requires_grad=True)
        with cpu(run).autocast():
            pairs = [m(x) for m in (linear, SemiStructuredLinear(linear))]
        assert torch.equal(*pairs) and pairs[0].dtype == cpu(run).dtype
        wanted = (x, linear.weight, linear.bias) if linear.bias is not None else (x, linear.weight)
        for a, b in zip(*(torch.autograd.grad(y.sum(), wanted) for y in pairs), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_the_compressed_run_is_the_run_under_masks(rule, cores):
    whole, run = sparse_run(rule, storage="masked"), sparse_run(rule)
    assert compressed_modules(whole) == [] and len(compressed_modules(run)) == 12
    assert {type(p) for p in run.sparsity.parameters} == {SparseParameter}
    assert [n for n, _ in run.model.named_parameters()] == [n for n, _ in whole.model.named_parameters()]
    step_both, churn = pairs.pair(whole, run, pairs.FLOAT32, UPDATES), 0
    for step in range(12):
        _, b = step_both(batch(step % 4, uneven=True), 2)
        assert len(cores) == 12 * 2 * (step + 1)  # each weight, in each micro-batch
        churn += b.churn
    assert (churn > 0) == (rule != "static")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("storage", ["auto", "masked"])  # of the run that goes on
def test_it_goes_on_from_a_checkpoint(rule, storage, cores, tmp_path):
    run = sparse_run(rule)
    for step in range(4):
        train_step(run, batch(step), 1)
    path = saving.save(str(tmp_path), run.step, *snapshot(run, "f"), None)
    again = sparse_run(rule, seed=8, storage=storage)
    restore(again, path, *checkpoint.load(path), "f")
    again.init = run.init  # the seed is the run's
    same = storage == "auto"
    step_both = pairs.pair(run, again, 0.0 if same else pairs.FLOAT32, 0.0 if same else UPDATES)
    for step in range(4, 12):
        step_both(batch(step))


def test_a_compiled_layer_goes_round_the_compressed_product(cores):
    torch._dynamo.reset()
    run, plain = sparse_run("rigl"), sparse_run("rigl")
    for layer in run.model.model.transformer_decoder.layers:
        layer.compile(backend="eager")
    step_both = pairs.pair(plain, run, pairs.FLOAT32, UPDATES)
    for step in range(4):
        step_both(batch(step))
    assert len(cores) == 2 * 12 * 4


def test_what_is_compressed_and_what_is_said(cores, monkeypatch):
    assert sparse_run().sparsity.notes == [
        "storage    12 weights 2:4 under masks, compressed in each product, on sparse tensor cores"
    ]
    for other in ({"storage": "masked"}, {"storage": "auto"}, {"storage": "auto", "nm": [1, 4]}):
        run = sparse_run(**other)
        assert compressed_modules(run) == [] and run.sparsity.notes == []
    (compressed, words) = sparse_run(param_filter=["*word_emb*", "*proj_q*weight"]).sparsity.notes[::-1]
    assert compressed.startswith("storage    2 weights 2:4 under masks, compressed")
    assert words == "storage    1 weights 2:4 under masks, multiplied whole: Embedding has no compressed form"
    lora = sparse_run(lora={"r": 2, "target_modules": ["*proj_q*"]})
    assert len(compressed_modules(lora)) == 10 and "LoRALinear has no compressed form" in " ".join(lora.sparsity.notes)
    monkeypatch.undo()
    run = sparse_run()
    assert compressed_modules(run) == []
    assert run.sparsity.notes == [
        "storage    12 weights 2:4 under masks, multiplied whole: 2:4 pays on NVIDIA GPUs alone"
    ]


def test_a_frozen_weight_has_no_gradient(cores):
    linear = GPTModel(tiny(), seed=0).get_submodule("model.transformer_decoder.layers.0.self_attn.proj_q_dense_layer")
    linear.weight.data[:, ::2] = 0
    linear.weight.requires_grad_(False)
    x = torch.randn(4, 16, requires_grad=True)
    SemiStructuredLinear(linear)(x).square().sum().backward()
    assert linear.weight.grad is None and len(cores) == 1
    torch.testing.assert_close(x.grad, 2 * linear(x).detach() @ linear.weight)
