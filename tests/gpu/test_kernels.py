"""Every product and every pass of a training step on a GPU against float64 on the host."""

import pytest
import torch
import torch.nn.functional as F

from modelzoo.kernels.attention import attention
from modelzoo.kernels.blocks.layout import layout_of, pack, unpack
from modelzoo.kernels.cross_entropy.linear import linear_cross_entropy
from modelzoo.kernels.cross_entropy.softmax import cross_entropy_
from modelzoo.kernels.products import packed, semi_structured
from modelzoo.kernels.products.choose import choose_kernel
from tests.gpu.device import DEVICE, GPU
from tests.kernels.products.test_semi_structured import two_of_four

pytestmark = pytest.mark.gpu

BLOCKS = [
    *((n, n) for n in (16, 32, 64, 128)),
    (32, 64),
    (64, 32),
    (16, 1),
    (32, 1),
    (64, 1),
    (128, 1),
    (32, 2),
    (64, 3),
]
NEAR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}  # eight units of rounding
DTYPES = list(NEAR)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers on the host that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def hold(got: torch.Tensor, want: torch.Tensor, near: float, what: object = "") -> None:
    """`got` against float64 `want`: apart by no more than `near` of an entry and of the root mean square of all."""
    assert got.shape == want.shape and bool(got.isfinite().all()), what
    if want.numel():
        apart = (got.detach().cpu().double() - want).abs() / (want.abs() + want.square().mean().sqrt() + 1e-30)
        assert float(apart.max()) < near, (what, float(apart.max()))


@pytest.mark.parametrize(
    "block,dtype",
    [
        (b, d)
        for b in BLOCKS
        for d in DTYPES
        if d == torch.bfloat16 or b in ((16, 16), (32, 32), (128, 128), (32, 1), (64, 3))
    ],
    ids=str,
)
def test_packed_products(block, dtype):
    """Forward, dX and dW of each pattern, at an odd number of tokens, with rows that have no live block."""
    for seed, density in enumerate((0.0, 0.3, 1.0)):
        hold_packed(block, dtype, layout_of(draw_blocks(block, density, seed), block), 97, seed)


@pytest.mark.parametrize("block", [(64, 64), (128, 32), (32, 1)], ids=str)
def test_packed_products_of_few_and_of_many_tokens(block):
    """More than one tile of tokens, and than one part of dW's sum; few, and none."""
    layout = layout_of(draw_blocks(block, 0.3, 5), block)
    for tokens in (0, 1, 7, 256, 3001):
        hold_packed(block, torch.bfloat16, layout, tokens, tokens)


@pytest.mark.parametrize("block", [(64, 64), (32, 32), (32, 2), (16, 16)], ids=str)
def test_packed_products_of_permuted_inputs(block):
    """Blocks of the inputs in another order: gathered before the products, and put back after dX."""
    live = draw_blocks(block, 0.4, 3)
    order = torch.randperm(live.shape[1] * block[1], generator=torch.Generator().manual_seed(4))
    hold_packed(block, torch.bfloat16, layout_of(live, block, order), 65, 1)


def draw_blocks(block: tuple[int, int], density: float, seed: int) -> torch.Tensor:
    """Four rows of live blocks, one of them without any unless all are live."""
    live = torch.rand(4, max(3, 192 // block[1]), generator=torch.Generator().manual_seed(seed)) < density
    live[1] = density == 1.0
    return live


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [(64, 64), (128, 1), (256, 1)], ids=str)
def test_packed_products_of_shared_inputs(block, dtype):
    """As many live blocks in each row: dense products of that size, batched, where they are quicker."""
    many = max(4, 192 // block[1])
    scores = torch.rand(4, many, generator=torch.Generator().manual_seed(1))
    live = torch.zeros(4, many, dtype=torch.bool).scatter_(1, scores.topk(many // 4).indices, True)
    hold_packed(block, dtype, layout_of(live, block), 65, 1)


def hold_packed(block, dtype, layout, tokens: int, seed: int) -> None:
    out, inputs = layout.shape
    values, bias = draw(layout.nnz, *block, seed=seed), draw(out, seed=seed + 1)
    x, dy = draw(tokens, inputs, seed=seed + 2, dtype=dtype), draw(tokens, out, seed=seed + 3, dtype=dtype)
    dense, there = unpack(values.to(dtype).double(), layout), layout.to(DEVICE)
    wanted = (
        x.double() @ dense.t() + bias.double(), dy.double() @ dense, pack(dy.double().t() @ x.double(), layout),
        dy.double().sum(0), dy.double().t() @ x.double(),
    )  # fmt: skip
    what = (block, dtype, layout.density, tokens, choose_kernel(there, DEVICE, dtype).NAME)
    for dense_too in (False, True):
        x2, values2, bias2 = (t.detach().to(DEVICE).requires_grad_() for t in (x, values, bias))
        probe = packed.probe(there) if dense_too else None
        y = packed.linear(x2, values2, there, bias2, probe)
        y.backward(dy.to(DEVICE))
        found = y, x2.grad, values2.grad, bias2.grad, *((probe.grad,) if probe is not None else ())
        assert y.dtype == x2.grad.dtype == dtype and values2.grad.dtype == bias2.grad.dtype == torch.float32
        # the dense gradient is rounded to the products' dtype; sums over no more than 256 tokens
        for name, got, want in zip(("y", "dx", "dvalues", "dbias", "dense"), found, wanted, strict=False):
            hold(got, want, NEAR[dtype], (*what, name))


def test_packed_products_repeat_their_bits():
    layout = layout_of(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.4, (64, 64)).to(DEVICE)
    values, x = draw(layout.nnz, 64, 64).to(DEVICE), draw(333, 512, dtype=torch.bfloat16).to(DEVICE)
    first = packed.linear(x, values, layout)
    assert all(torch.equal(first, packed.linear(x, values, layout)) for _ in range(3))


@pytest.mark.parametrize("shape", [(64, 128), (192, 64), (256, 320)], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 97, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_two_of_four(dtype, tokens, shape):
    out, inputs = shape
    weight = (draw(out, inputs, dtype=dtype) * two_of_four(out, inputs)).to(DEVICE).requires_grad_()
    x, bias = (
        draw(*s, seed=i + 1, dtype=dtype).to(DEVICE).requires_grad_() for i, s in enumerate([(tokens, inputs), (out,)])
    )
    dy = draw(tokens, out, seed=3, dtype=dtype)
    assert (semi_structured.unavailable(weight, dtype) == "") == GPU
    y = semi_structured.linear(x, weight, bias)
    y.backward(dy.to(DEVICE))
    w64, x64, b64 = (t.detach().cpu().double() for t in (weight, x, bias))
    hold(y, x64 @ w64.t() + b64, NEAR[dtype])
    hold(x.grad, dy.double() @ w64, NEAR[dtype])
    hold(weight.grad, dy.double().t() @ x64, NEAR[dtype])
    hold(bias.grad, dy.double().sum(0), NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counted", [0.3, 1.0])
@pytest.mark.parametrize("vocab", [37, 50257])
def test_the_head_and_its_cross_entropy(vocab, counted, dtype):
    n, d = 70 if vocab > 1000 else 333, 64
    hidden, weight, bias = draw(n, d, dtype=dtype), draw(vocab, d, seed=1), draw(vocab, seed=2)
    labels = torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(3))
    mask = (torch.rand(n, generator=torch.Generator().manual_seed(4)) < counted).float()
    ours = [t.to(DEVICE).requires_grad_() for t in (hidden, weight, bias)]
    theirs = [t.detach().double().requires_grad_() for t in (hidden, weight.to(dtype), bias.to(dtype))]
    found = linear_cross_entropy(ours[0], ours[1], labels.to(DEVICE), mask.to(DEVICE), ours[2], 0.25)
    logits = F.linear(*theirs) * 0.25
    wanted = (F.cross_entropy(logits, labels, reduction="none") * mask).sum()
    (found * 0.5).backward()
    (wanted * 0.5).backward()
    assert found.dtype == torch.float32
    hold(found, wanted.detach(), NEAR[dtype])
    for name, a, b in zip(("hidden", "weight", "bias"), ours, theirs, strict=True):
        # logits are rounded to the products' dtype, and exp makes of that a relative error of e^(unit * |logit|)
        hold(a.grad, b.grad, NEAR[dtype] * (1 if dtype == torch.float32 else 4), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_in_place(dtype):
    logits, labels = draw(65, 1001, dtype=dtype) * 5, torch.arange(65) * 7
    there, losses = logits.to(DEVICE, copy=True), torch.empty(65, device=DEVICE)
    cross_entropy_(there, labels.to(DEVICE), losses, True)
    log_p = torch.log_softmax(logits.double(), -1)
    hold(losses, -log_p.gather(1, labels[:, None])[:, 0], 1e-5)
    hold(there, log_p.exp().scatter_add(1, labels[:, None], torch.full((65, 1), -1.0).double()), NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["causal", "mask", "mask of each head"])
@pytest.mark.parametrize("t,d", [(1, 32), (29, 32), (128, 64), (300, 80)])
def test_attention(t, d, kind, dtype):
    b, h = 2, 3
    q, k, v = (draw(b, t, h, d, seed=i, dtype=dtype) for i in range(3))
    dy, mask = draw(b, h, t, d, seed=3, dtype=dtype), None
    causal = torch.ones(t, t, dtype=torch.bool).tril()
    if kind != "causal":
        heads = 1 if kind == "mask" else h
        mask = draw(b, heads, t, t, seed=4, dtype=dtype).masked_fill(~causal, float("-inf"))
    ours = [x.to(DEVICE).requires_grad_() for x in (q, k, v)]
    theirs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    swapped = [x.transpose(1, 2) for x in ours]
    y = attention(*swapped, None if mask is None else mask.to(DEVICE), 0.0, d**-0.5)
    q64, k64, v64 = (x.transpose(1, 2) for x in theirs)
    bias = torch.zeros(t, t).double().masked_fill(~causal, float("-inf")) if mask is None else mask.double()
    want = torch.softmax(q64 @ k64.transpose(2, 3) * d**-0.5 + bias, -1) @ v64
    y.backward(dy.to(DEVICE))
    want.backward(dy.double())
    near = {torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype]
    hold(y, want.detach(), near)
    for name, a, x in zip("qkv", ours, theirs, strict=True):
        if t > 1 or name == "v":  # of one token the softmax is 1 whatever q and k are
            hold(a.grad, x.grad, near, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [1, 4])
def test_attention_to_cached_keys(t, dtype):
    """A view of a cache that is longer, as generation has it."""
    q, cache = draw(2, 3, t, 32, dtype=dtype), [draw(2, 3, 128, 32, seed=i, dtype=dtype) for i in (1, 2)]
    mask = torch.zeros(2, 1, t, 77, dtype=dtype) if t > 1 else None
    if mask is not None:
        mask[1, :, :, 60:] = float("-inf")
    k, v = (x.to(DEVICE)[:, :, :77] for x in cache)
    k64, v64 = (x[:, :, :77].double() for x in cache)
    with torch.no_grad():
        y = attention(q.to(DEVICE), k, v, None if mask is None else mask.to(DEVICE), 0.0, 0.2)
    scores = q.double() @ k64.transpose(2, 3) * 0.2 + (0 if mask is None else mask.double())
    hold(y, torch.softmax(scores, -1) @ v64, {torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype])
