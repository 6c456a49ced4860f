"""The products of shared inputs on GPUs: cuBLAS multiplies dense weights in batches, Triton picks their inputs.

G groups of outputs that share one set of k live inputs are blocks [out / G, 1], packed as [G * k, out / G, 1]. The
inputs of all groups side by side are columns of x, so forward and dW pick columns, and dX adds up for each input what
the groups that read it give: in the groups' order and in float32, without atomics, so with equal bits from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout

NAME = "cuBLAS, batched, inputs picked by Triton"
PICKED = {"T": 4, "K": 1024, "num_warps": 4}  # tokens and columns of a program; of sixteen the quickest on an H200
SUMMED = {"T": 64, "K": 64, "num_warps": 4}
ALIGNED = 8  # columns of a group are filled up to a multiple of so many: cuBLAS's quick kernels want it


def serves(layout: Layout, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for this pattern and dtype."""
    return layout.even and layout.block[1] == 1 and dtype in (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _pick(x, cols, picked, n, inputs, wide, live, filled, ONE: tl.constexpr, T: tl.constexpr, K: tl.constexpr):
    """picked [n, wide] <- the columns of x [n, inputs] that each group reads, then (ONE) one of ones, then zeros."""
    side = tl.cdiv(wide, K)
    t, k = (tl.program_id(0) // side) * T + tl.arange(0, T), (tl.program_id(0) % side) * K + tl.arange(0, K)
    row, here, place = t.to(tl.int64)[:, None], (t < n)[:, None], k % filled
    read = (k < wide) & (place < live)
    at = tl.load(cols + (k // filled) * live + place, mask=read, other=0)
    found = tl.load(x + row * inputs + at[None, :], mask=here & read[None, :], other=0.0)
    if ONE:
        found = tl.where((place == live)[None, :], 1.0, found)
    tl.store(picked + row * wide + k[None, :], found, here & (k < wide)[None, :])


@triton.jit
def _sum(parts, dx, col_ptr, by_column, n, inputs, T: tl.constexpr, K: tl.constexpr):
    """dx [n, inputs] <- for each input the sum of its rows of parts [live inputs of all groups, n]."""
    side = tl.cdiv(inputs, K)
    t, k = (tl.program_id(0) // side) * T + tl.arange(0, T), (tl.program_id(0) % side) * K + tl.arange(0, K)
    begin = tl.load(col_ptr + k, mask=k < inputs, other=0)
    count = tl.load(col_ptr + k + 1, mask=k < inputs, other=0) - begin
    total = tl.zeros((K, T), tl.float32)
    for i in range(0, tl.max(count, 0)):
        row = tl.load(by_column + begin + i, mask=i < count, other=0).to(tl.int64)
        part = tl.load(parts + row[:, None] * n + t[None, :], mask=(i < count)[:, None] & (t < n)[None, :], other=0.0)
        total += part.to(tl.float32)
    to = dx + t.to(tl.int64)[:, None] * inputs + k[None, :]
    tl.store(to, tl.trans(total).to(dx.dtype.element_ty), (t < n)[:, None] & (k < inputs)[None, :])


def _programs(n: int, columns: int, tile: dict[str, int]) -> tuple[int]:
    """One for each tile of [n, columns]."""
    return (triton.cdiv(n, tile["T"]) * triton.cdiv(columns, tile["K"]),)


def _groups(layout: Layout) -> tuple[int, int]:
    """How many, and the live inputs of each."""
    groups = layout.shape[0] // layout.block[0]
    return groups, layout.nnz // groups


def _fill_up(columns: int) -> int:
    return triton.cdiv(columns, ALIGNED) * ALIGNED


def _pick_inputs(x: Tensor, layout: Layout, one: bool = False) -> Tensor:
    """x [n, in] -> what each group reads, and `one` if asked, a view [G, n, columns]."""
    (groups, live), n = _groups(layout), x.shape[0]
    filled = _fill_up(live + one)
    wide = groups * filled
    picked = x.new_empty(n, wide)
    if n:
        _pick[_programs(n, wide, PICKED)](
            x.contiguous(), layout.cols, picked, n, x.shape[1], wide, live, filled, ONE=one, **PICKED
        )
    return _by_group(picked, groups)


def _by_group(y: Tensor, groups: int) -> Tensor:
    """[n, G * columns] -> a view [G, n, columns]."""
    return y.view(len(y), groups, y.shape[1] // groups).transpose(0, 1)


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype; the bias is one more weight, of an input that is one."""
    (groups, live), one = _groups(layout), bias is not None
    weights = torch.zeros(groups, _fill_up(live + one), layout.block[0], dtype=x.dtype, device=x.device)
    weights[:, :live] = values.view(groups, live, -1)
    if bias is not None:
        weights[:, live] = bias.view(groups, -1)
    y = x.new_empty(x.shape[0], layout.shape[0])
    torch.bmm(_pick_inputs(x, layout, one), weights, out=_by_group(y, groups))
    return y


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype."""
    (groups, live), n, inputs = _groups(layout), dy.shape[0], layout.shape[1]
    parts, dx = dy.new_empty(groups, live, n), dy.new_empty(n, inputs)
    weights = values.to(dy.dtype).view(groups, live, layout.block[0])
    torch.bmm(weights, _by_group(dy.contiguous(), groups).transpose(1, 2), out=parts)
    if n:
        _sum[_programs(n, inputs, SUMMED)](parts, dx, layout.col_ptr, layout.by_column, n, inputs, **SUMMED)
    return dx


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, 1] in dy's dtype."""
    groups, live = _groups(layout)
    dvalues = torch.bmm(_pick_inputs(x, layout).transpose(1, 2), _by_group(dy.contiguous(), groups))
    return dvalues[:, :live].reshape(layout.nnz, layout.block[0], 1)
