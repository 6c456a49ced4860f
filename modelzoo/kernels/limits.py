"""Sizes at which kernels change their way. No torch: `plan` counts the memory that follows from them."""

BUFFER_BYTES = 128 << 20  # logits at a time in the output head: many rows make the matrix products efficient
# Up to these lengths the batched products of attention win on every class of CPU tried: the fused kernel takes several
# times what its 16-bit arithmetic would, until [t, t] scores no longer fit the caches. It has no dropout on CPUs.
PLAIN_UP_TO = {"float32": 128}
PLAIN_OTHERWISE = 512

SCORED_ROWS = 1024  # logits at a time where nothing is trained
GRAPHS = 4  # CUDA graphs of one run at a time: each shape of a batch has its own, and its own gradients
# Of a layer, forward and backward: from here on a GPU takes longer for it than its host to launch it. On an H200 XL's
# on 8,192 tokens (2.5e12) gain nothing from CUDA graphs, Med's (0.6e12) are 1.7 times as fast.
LAUNCHED_FLOPS = 2e12
GRADIENT_BYTES = 4 << 30  # that graphs beyond the first take for their gradients
WIDTHS = 32  # batches are cut to a multiple of so many tokens where all that follows is padding


def find_longest_plain(dtype: str, dropout: float) -> int:
    """The longest sequence whose attention is plain products on a CPU, in `dtype` (float32, bfloat16, ...)."""
    return PLAIN_OTHERWISE if dropout else PLAIN_UP_TO.get(dtype, PLAIN_OTHERWISE)


def pays_to_capture(weights: float, tokens: int) -> bool:
    """Whether a GPU that computes a layer of so many stored weights, on so many tokens, would wait for its host."""
    return 6 * weights * tokens < LAUNCHED_FLOPS


def count_graphs(gradients: int) -> int:
    """How many shapes of batches have a graph, where the gradients of one take so many bytes."""
    return 1 + min(GRAPHS - 1, GRADIENT_BYTES // max(gradients, 1))


def count_head_rows(vocab: int, item: int, gpu: bool = False) -> int:
    """Rows of logits at a time, of `item` bytes a value. Each time adds to the head's whole gradient once more, which
    costs a GPU as much as 500 rows."""
    return max(64, (4 if gpu else 1) * BUFFER_BYTES // (item * vocab))
