"""Where the live blocks of a packed [out, in] weight are: block rows and columns, and how to transpose.

Only shapes that their pattern divides are packed (`packable`); all others stay masked-dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from modelzoo.kernels.blocks import tiling


def packable(shape: Sequence[int], block: Sequence[int]) -> bool:
    """Whether a weight of `shape` [out, in] can be packed in blocks [R, C]: both sides divide."""
    return len(shape) == 2 and shape[0] % block[0] == 0 and shape[1] % block[1] == 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Live blocks in row-major order of their places (block compressed sparse rows, and columns by `by_column`).

    Attributes:
        shape: (out, in) of the weight; block: (R, C) of a block.
        rows, cols: [nnz] int32, the block row and block column of each live block.
        row_ptr: [out / R + 1] int32; block row i holds blocks row_ptr[i] to row_ptr[i + 1].
        by_column: [nnz] int32, the blocks ordered by column and then row: the transpose permutation.
        col_ptr: [in / C + 1] int32, likewise for columns, in the order of `by_column`.
        col_rows: [nnz] int32, the block row of each block in that order.
        even: whether every block row has as many live blocks, and at least one.
        order, inverse: [in] int64 each: blocks are of the inputs x[..., order], which [..., inverse] puts back; columns
            count in this order. None where blocks are of the inputs as they are.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    rows: Tensor
    cols: Tensor
    row_ptr: Tensor
    col_ptr: Tensor
    col_rows: Tensor
    by_column: Tensor
    even: bool
    order: Tensor | None = None
    inverse: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The six tensors, in order."""
        return self.rows, self.cols, self.row_ptr, self.col_ptr, self.col_rows, self.by_column

    @property
    def nnz(self) -> int:
        """Live blocks."""
        return self.rows.numel()

    @property
    def density(self) -> float:
        """Live share of the weight."""
        return self.nnz * self.block[0] * self.block[1] / max(1, self.shape[0] * self.shape[1])

    @cached_property
    def row_bounds(self) -> list[int]:
        """`row_ptr` on the host."""
        return self.row_ptr.tolist()

    @cached_property
    def columns(self) -> Tensor:
        """[nnz * C] int64: the inputs that each live block reads, block after block."""
        c = self.block[1]
        return (self.cols.long().unsqueeze(1) * c + torch.arange(c, device=self.cols.device)).flatten()

    def to(self, device: torch.device | str) -> "Layout":
        """The same layout on another device."""
        rows, cols, row_ptr, col_ptr, col_rows, by_column = (part.to(device) for part in self.parts)
        order, inverse = (None if x is None else x.to(device) for x in (self.order, self.inverse))
        here = rows, cols, row_ptr, col_ptr, col_rows, by_column
        return Layout(self.shape, self.block, *here, self.even, order, inverse)

    @cached_property
    def arranged(self) -> "Layout":
        """The layout of the weight whose inputs are in `order` already, which is what kernels multiply by."""
        return self if self.order is None else replace(self, order=None, inverse=None)

    def block_mask(self) -> Tensor:
        """[out / R, in / C] bool: where blocks live."""
        r, c = self.block
        mask = torch.zeros(self.shape[0] // r, self.shape[1] // c, dtype=torch.bool, device=self.rows.device)
        mask[self.rows.long(), self.cols.long()] = True
        return mask

    def mask(self) -> Tensor:
        """[out, in] bool: where weights live."""
        return tiling.spread(self.block_mask(), self.block, self.order)


def layout_of(live: Tensor, block: Sequence[int], order: Tensor | None = None) -> Layout:
    """The layout of live blocks.

    Args:
        live: [out / R, in / C] bool, True where a block lives; any number of them, none and all included.
        block: (R, C).
        order: [in] int64, of the inputs in which the blocks are; None: as they are.
    """
    at = live.nonzero()  # row-major
    rows, cols = at[:, 0], at[:, 1]
    by_column = torch.argsort(cols, stable=True)

    def pointers(counts: Tensor) -> Tensor:
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()

    shape = (live.shape[0] * block[0], live.shape[1] * block[1])
    by_row = rows.int(), cols.int(), pointers(live.sum(1))
    counts, column = live.sum(1), pointers(live.sum(0))
    even = len(at) > 0 and bool(counts.min() == counts.max())  # found here: a product must not wait for a GPU
    by_column = column, rows[by_column].int(), by_column.int()
    if order is None or torch.equal(order, torch.arange(len(order), device=order.device)):
        return Layout(shape, (block[0], block[1]), *by_row, *by_column, even)
    order = order.to(live.device)
    return Layout(shape, (block[0], block[1]), *by_row, *by_column, even, order, order.argsort())


def layout_from_mask(mask: Tensor, block: Sequence[int], order: Tensor | None = None) -> Layout:
    """The layout of an [out, in] bool mask that is constant on each block, of inputs in `order`.

    Raises:
        ValueError: the shape does not divide, or a block is partly live.
    """
    if not packable(mask.shape, block):
        raise ValueError(f"a mask of {list(mask.shape)} does not divide into blocks of {list(block)}")
    if (live := tiling.find_live(mask, block, order)) is None:
        raise ValueError(f"the mask is not constant on blocks of {list(block)}")
    return layout_of(live, block, order)


def pack(weight: Tensor, layout: Layout) -> Tensor:
    """The live blocks of `weight` [out, in] as a new [nnz, R, C], any dtype (weights, gradients, moments, masks)."""
    weight = tiling.arrange(weight, layout.order)
    return tiling.tiles(weight, layout.block)[layout.rows.long(), layout.cols.long()]


def repack(values: Tensor, before: Layout, after: Layout) -> Tensor:
    """Live blocks `values` of one layout as those of another: blocks that are new in it are zero.

    The bits of `pack(unpack(values, before), after)`, without the whole weight where both are of one order of inputs.
    """
    if not _have_one_order(before, after):
        return pack(unpack(values, before), after)
    places = torch.full((before.shape[0] // before.block[0], before.shape[1] // before.block[1]), -1,
                        device=values.device)  # fmt: skip
    places[before.rows.long(), before.cols.long()] = torch.arange(before.nnz, device=values.device)
    old = places[after.rows.long(), after.cols.long()]
    new = (old >= 0).nonzero().squeeze(1)
    found = values.new_zeros(after.nnz, *after.block)
    found[new] = values[old[new]]
    return found


def _have_one_order(a: Layout, b: Layout) -> bool:
    if a.order is None or b.order is None:
        return a.order is b.order
    return a.order is b.order or torch.equal(a.order, b.order)


def unpack(values: Tensor, layout: Layout, fill: float = 0.0) -> Tensor:
    """The dense [out, in] of live blocks `values` [nnz, R, C], `fill` elsewhere. `pack` takes it back bit for bit."""
    dense = torch.full(layout.shape, fill, dtype=values.dtype, device=values.device)
    tiling.tiles(dense, layout.block)[layout.rows.long(), layout.cols.long()] = values
    return tiling.arrange(dense, layout.inverse)
