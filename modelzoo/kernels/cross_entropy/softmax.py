"""Cross-entropy of rows of logits, and its gradient in their place: compiled on CPUs, torch's operators elsewhere."""

import ctypes
from types import ModuleType

import torch
from torch import Tensor

from modelzoo.kernels.compiled.build import Unavailable, library, pointer

PIECE_BYTES = 4 << 20  # float32 softmax at a time on a CPU: what the cache holds
WORTH = 1 << 20  # logits from which a compiled pass pays for the compiler's seconds


def cross_entropy_(logits: Tensor, labels: Tensor, losses: Tensor, gradient: bool) -> None:
    """losses <- -log softmax(logits)[label], in nats; with `gradient`, logits <- softmax - one-hot, in their place.

    Args:
        logits: [n, vocab]; contiguous on CPUs, elsewhere its rows may be further apart.
        labels: [n] int64, each below vocab.
        losses: [n] float32, written.
    """
    known = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16)
    if known and logits.numel() >= WORTH and not torch.compiler.is_compiling():
        try:
            return _compiled(logits, labels.contiguous(), losses, gradient)
        except Unavailable:
            pass
    if logits.is_cuda and (triton := _find_triton()) is not None:
        return triton.cross_entropy_(logits, labels, losses, gradient)
    piece = max(16, PIECE_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else max(1, logits.shape[0])
    for g, y, loss in zip(logits.split(piece), labels.split(piece), losses.split(piece), strict=True):
        logp = torch.log_softmax(g, -1, dtype=torch.float32)
        at = y.unsqueeze(1)
        loss.copy_(logp.gather(1, at).squeeze(1)).neg_()
        if gradient:
            g.copy_(logp.exp_().scatter_add_(1, at, torch.full_like(at, -1.0, dtype=torch.float32)))
        del logp  # before the next piece's


def _find_triton() -> ModuleType | None:
    """The pass for GPUs, where Triton is installed."""
    try:
        from modelzoo.kernels.triton import softmax
    except ImportError:
        return None
    return softmax


def _compiled(logits: Tensor, labels: Tensor, losses: Tensor, gradient: bool) -> None:
    sides = [ctypes.c_int64(side) for side in logits.shape]
    pointers = [pointer(t) for t in (logits, labels, losses)]
    bf16 = int(logits.dtype == torch.bfloat16)
    library("softmax").softmax_cross_entropy(bf16, torch.get_num_threads(), *sides, *pointers, int(gradient))
