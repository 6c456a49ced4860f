"""Which kernel multiplies by a packed weight, and the one line that names it.

All kernels are modules with `forward`, `backward_x`, `backward_w` and a NAME, under one contract; they differ in time.
"""

from types import ModuleType

import torch

from modelzoo.kernels import processor
from modelzoo.kernels.blocks.layout import Layout
from modelzoo.kernels.compiled.build import Unavailable, library
from modelzoo.kernels.products import batched, gathered, masked, native, scattered

TALL = 32  # rows of a block from which one gathered product per block row may beat the dense product on a CPU; twice
# as many in 16 bits, where products are quicker and gathering is not
COPIES = 8  # a batched product gathers its inputs: at most so many copies of the activations


def may_batch(block: tuple[int, int], device: str) -> bool:
    """Whether the kernel for such blocks depends on `Layout.even`; where it does not, none need look at that."""
    return block[1] == 1 and block[0] > 128 if device == "cuda" else block[0] >= TALL


def choose_kernel(layout: Layout, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The kernel for activations of `dtype` on `device`."""
    return _chosen(layout, device, dtype)[0]


def describe_choice(layout: Layout, device: torch.device, dtype: torch.dtype) -> str:
    """One line for a run's start: the pattern, its kernel, and why it is no faster one.

    Compiles the C++ kernels where they serve and have not been compiled yet.
    """
    kernel, reason = _chosen(layout, device, dtype)
    rows, cols = layout.block
    name = str(dtype).removeprefix("torch.")
    return f"[{rows}, {cols}] blocks in {name} on {device.type}: {kernel.NAME}" + (f" ({reason})" if reason else "")


def find_densest(layout: Layout, kernel: ModuleType, dtype: torch.dtype) -> float:
    """The live share up to which `kernel` is known to beat the dense product on this pattern; 0 where nothing is known.

    Measured by benchmarks/linear.py (forward, dX and dW together; 1024 tokens, sides of 768 and more) on processors
    with AVX2, AVX-512 with and without bf16, and AMX, and by benchmarks/gpu.py (8192 tokens, sides of 2048) on an H200.
    """
    gathers = 0.1 if layout.order is not None else 0.0  # permuted inputs: what selecting them costs
    return max(0.0, _find_densest_as_is(layout, kernel, dtype) - gathers)


def _find_densest_as_is(layout: Layout, kernel: ModuleType, dtype: torch.dtype) -> float:
    """`find_densest` for inputs that are in order."""
    if kernel is native:
        tiles = dtype == torch.bfloat16 and library(native.name_library(layout)).has_tiles()
        if tiles:  # AMX, where dense products are quickest: 1.1x at 0.7, 2.4x at a quarter; narrow ones 1.0x at 0.35
            return 0.65 if layout.block[1] % 32 == 0 else 0.3
        # blocks: 1.6x at half, 3x at a quarter; unstructured: 0.9x at 0.4, 1.3x and more at a quarter
        return 0.35 if layout.block == (1, 1) else 0.8
    if kernel.NAME == "Triton, tiles":  # which cannot be imported everywhere
        return {128: 0.5, 64: 0.35}.get(min(layout.block), 0.15)
    if kernel.__name__ == "modelzoo.kernels.triton.shared":
        return 0.3  # a whole step 1.3x at a quarter, 0.95x at half
    if kernel is gathered:
        return _find_densest_gathered(layout.block[0], dtype)
    if kernel is batched:  # 1.2x to 1.5x at half; in bfloat16 with AMX 0.6x, 0.9x at a quarter, 1.2x at a tenth
        return 0.1 if _has_fast_dense(dtype) else 0.5
    return 0.0


def _has_fast_dense(dtype: torch.dtype) -> bool:
    """Whether torch multiplies whole matrices of `dtype` by AMX."""
    return dtype == torch.bfloat16 and processor.processor_class() == "amx"


def _find_densest_gathered(rows: int, dtype: torch.dtype) -> float:
    """`find_densest` of torch's gathered products: the quicker a processor's dense ones are, the less these gain.

    At 75 % off, blocks of 32, 64 and 128 rows: float32 on AVX2 1.08x, 1.33x, 1.53x, with AVX-512 0.70x, 0.87x, 1.04x;
    bfloat16 with AVX-512 64 and 128 rows 1.28x, 1.53x, with AMX 0.32x, 0.41x.
    """
    if _has_fast_dense(dtype):
        return 0.0
    wide = dtype == torch.float32 and processor.processor_class() in processor.X86[1:]
    shares = (0.1, 0.15, 0.25) if wide else (0.25, 0.35, 0.4)
    return 0.0 if rows < TALL else shares[0 if rows < 64 else 1 if rows < 128 else 2]


def _chosen(layout: Layout, device: torch.device, dtype: torch.dtype) -> tuple[ModuleType, str]:
    """The kernel, and why there is no faster one."""
    if device.type == "cuda":
        return _on_gpu(layout, dtype)
    rows, copies = layout.block[0], layout.density * layout.shape[0] / layout.block[0]
    if copies <= COPIES and may_batch(layout.block, device.type) and layout.even:
        plain = batched
    else:
        tall = rows >= (TALL if dtype.itemsize >= 4 else 2 * TALL)
        plain = gathered if device.type == "cpu" and tall else masked
    if device.type != "cpu":
        return plain, "no kernel for this device"
    if not native.serves(layout, dtype):
        return plain, (
            "compiled kernels are for [1, 1] and blocks of 32 k rows, sides in multiples of 32, float32 and bfloat16"
        )
    try:
        loaded = library(native.name_library(layout))
    except Unavailable as reason:
        return plain, f"no compiled kernels: {reason}"
    if scattered.serves(layout, dtype):
        return scattered, "AMX multiplies whole matrices faster than unstructured weights can be picked"
    widened = dtype == torch.bfloat16 and not loaded.has_bf16()
    return native, f"computed in float32: no bfloat16 product for {processor.title()}" if widened else ""


def _on_gpu(layout: Layout, dtype: torch.dtype) -> tuple[ModuleType, str]:
    try:
        from modelzoo.kernels.triton import blocks, shared, tiles
    except ImportError:
        return masked, "Triton is not installed"
    if may_batch(layout.block, "cuda") and shared.serves(layout, dtype):
        return shared, ""
    if tiles.serves(layout, dtype):
        return tiles, ""
    if not blocks.serves(layout, dtype):
        return masked, "Triton's kernels are for blocks of 16, 32, 64 or 128 rows"
    narrow = layout.block[1] not in (16, 32, 64, 128)
    return blocks, "dX of narrow blocks is dense" if narrow else ""
