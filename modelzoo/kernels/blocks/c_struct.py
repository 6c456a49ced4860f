"""Live blocks and their layout as the C++ kernels take them."""

import ctypes

from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout


class Weight(ctypes.Structure):
    """`struct Weight` of compiled/csrc/pack.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("out", "input", "R", "C")] + [
        (name, ctypes.c_void_p) for name in ("row_ptr", "cols", "col_ptr", "col_rows", "by_column", "values")
    ]


def weight_of(values: Tensor, layout: Layout) -> Weight:
    """`struct Weight` of live blocks; the caller keeps `values`, float32 and contiguous, alive."""
    index = (layout.row_ptr, layout.cols, layout.col_ptr, layout.col_rows, layout.by_column)
    return Weight(*layout.shape, *layout.block, *(t.data_ptr() for t in (*index, values)))
