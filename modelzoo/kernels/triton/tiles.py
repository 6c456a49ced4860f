"""The products of a packed weight in blocks of 32 to 128 on GPUs, in 16 bits: one tile of the result is one block wide.

Blocks are read where they are: nothing is gathered or copied. From Hopper on the copy engine fetches whole tiles
(TMA), on older GPUs each thread its own part. A tile's sum has the order of its live blocks and is float32, without
atomics: equal bits from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout

try:
    from triton.tools.tensor_descriptor import TensorDescriptor  # pyright: ignore[reportMissingImports]
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

NAME = "Triton, tiles"
SIDES = (32, 64, 128)
# Tokens of a tile, steps of the sum at a time, warps and stages; measured on an H200, where others are up to 10 %
# slower. A tuning at run time would cost more than it finds, and could change the bits of a resumed run.
PRODUCT = {"T": 128, "K": 64, "num_warps": 4, "num_stages": 5}
GRADIENT = {"T": 64, "num_warps": 4, "num_stages": 3}
FILL = 132  # programs of dW at least: one for each multiprocessor of an H100


def serves(layout: Layout, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for this pattern and dtype."""
    return set(layout.block) <= {*SIDES} and dtype in (torch.bfloat16, torch.float16)


@triton.jit
def _product(
    a, values, bias, out, ptr, other, order, n, na, no,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, TMA: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out [n, no] <- a [n, na] times the live blocks of W^T; TRANSPOSED: of W, for dX."""
    side = no // WIDTH
    row, tile = tl.program_id(0) % side, tl.program_id(0) // side  # programs at work share a few tiles of `a`
    t, o, k = tile * T + tl.arange(0, T), tl.arange(0, WIDTH), tl.arange(0, K)
    total = tl.zeros((T, WIDTH), tl.float32)
    parts: tl.constexpr = DEPTH // K
    for i in range(tl.load(ptr + row) * parts, tl.load(ptr + row + 1) * parts):
        j, part = i // parts, (i % parts) * K
        block = tl.load(order + j) if TRANSPOSED else j
        at = tl.load(other + j) * DEPTH + part
        if TMA:
            x = a.load([tile * T, at])
        else:
            x = tl.load(a + tl.where(t < n, t, 0).to(tl.int64)[:, None] * na + (at + k)[None, :])
        if TMA and TRANSPOSED:
            w = values.load([block * DEPTH + part, 0])
        elif TMA:
            w = values.load([block * WIDTH, part]).T
        elif TRANSPOSED:
            w = tl.load(values + (block * DEPTH + part + k)[:, None] * WIDTH + o[None, :])
        else:
            w = tl.load(values + (block * WIDTH + o)[None, :] * DEPTH + (part + k)[:, None])
        total = tl.dot(x, w, total)
    if BIAS:
        total += tl.load(bias + row * WIDTH + o)[None, :]
    to = out + t.to(tl.int64)[:, None] * no + row * WIDTH + o[None, :]
    tl.store(to, total.to(out.dtype.element_ty), (t < n)[:, None])


@triton.jit
def _gradient(
    dy, x, dvalues, rows, cols, n, out, inputs, nnz, span,
    R: tl.constexpr, C: tl.constexpr, TMA: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """dvalues[part] [nnz, R, C] <- dy^T x of each live block, over the `span` tokens of one part."""
    block, part = tl.program_id(0), tl.program_id(1)
    r, c = tl.arange(0, R), tl.arange(0, C)
    row, col = tl.load(rows + block) * R, tl.load(cols + block) * C
    total = tl.zeros((R, C), tl.float32)
    for first in range(part * span, min((part + 1) * span, n), T):
        if TMA:  # zeros beyond the last token
            g, v = dy.load([first, row]), x.load([first, col])
        else:
            t = first + tl.arange(0, T)
            at, inside = t.to(tl.int64)[:, None], (t < n)[:, None]
            g = tl.load(dy + at * out + (row + r)[None, :], mask=inside, other=0.0)
            v = tl.load(x + at * inputs + (col + c)[None, :], mask=inside, other=0.0)
        total = tl.dot(tl.trans(g), v, total)
    tl.store(dvalues + (part.to(tl.int64) * nnz + block) * (R * C) + r[:, None] * C + c[None, :], total)


def _fetches(x: Tensor) -> bool:
    """Whether the GPU fetches tiles by itself."""
    return TensorDescriptor is not None and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)


def _tiled(x: Tensor, tma: bool, *tile: int):
    """A matrix as the kernels read it, `tile` at a time."""
    return TensorDescriptor.from_tensor(x, [*tile]) if tma and TensorDescriptor is not None else x


def _multiply(a: Tensor, values: Tensor, bias: Tensor | None, layout: Layout, transposed: bool) -> Tensor:
    (out, inputs), (r, c), n = layout.shape, layout.block, a.shape[0]
    if transposed:
        no, width, depth, ptr, other = inputs, c, r, layout.col_ptr, layout.col_rows
    else:
        no, width, depth, ptr, other = out, r, c, layout.row_ptr, layout.cols
    if not layout.nnz:  # no weight to describe
        y = a.new_zeros(n, no)
        return y if bias is None else y + bias.to(a.dtype)
    y, tma, a, values = a.new_empty(n, no), _fetches(a), a.contiguous(), values.to(a.dtype).view(-1, c)
    tiles = {**PRODUCT, "K": min(PRODUCT["K"], depth)}
    weights = _tiled(values, tma, *((tiles["K"], c) if transposed else (r, tiles["K"])))
    if n:
        _product[(triton.cdiv(n, tiles["T"]) * (no // width),)](
            _tiled(a, tma, tiles["T"], tiles["K"]), weights, y if bias is None else bias, y, ptr, other,
            layout.by_column, n, a.shape[1], no,
            WIDTH=width, DEPTH=depth, TRANSPOSED=transposed, BIAS=bias is not None, TMA=tma, **tiles,
        )  # fmt: skip
    return y


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype; bias is added before rounding."""
    return _multiply(x, values, bias, layout, False)


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype."""
    return _multiply(dy, values, None, layout, True)


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] float32."""
    (out, inputs), (r, c), n, nnz = layout.shape, layout.block, x.shape[0], layout.nnz
    if not (n and nnz):
        return torch.zeros(nnz, r, c, device=x.device)
    parts = min(triton.cdiv(FILL, nnz), triton.cdiv(n, 1024))  # few blocks: several programs for each
    span = triton.cdiv(triton.cdiv(n, parts), 128) * 128
    sums, tma, tiles = torch.empty(parts, nnz, r, c, device=x.device), _fetches(x), GRADIENT
    _gradient[(nnz, parts)](
        _tiled(dy.contiguous(), tma, tiles["T"], r), _tiled(x.contiguous(), tma, tiles["T"], c), sums,
        layout.rows, layout.cols, n, out, inputs, nnz, span, R=r, C=c, TMA=tma, **tiles,
    )  # fmt: skip
    return sums[0] if parts == 1 else sums.sum(0)
