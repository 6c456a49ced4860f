"""Token ids to training examples: pure functions and small carriers, no files.

Rows of an example are those of modelzoo.data.format: input_ids, loss mask, labels (already shifted), and for
document boundaries attention_span and position_ids.
"""

from collections.abc import Sequence

import numpy as np


def join(flat: np.ndarray, offsets: np.ndarray, eos: int) -> np.ndarray:
    """Documents flat[offsets[k]:offsets[k+1]] as one stream, each followed by `eos`."""
    n = len(offsets) - 1
    stream = np.empty(len(flat) + n, np.int32)
    ends = offsets[1:] + np.arange(n)
    stream[ends] = eos
    inside = np.ones(len(stream), bool)
    inside[ends] = False
    stream[inside] = flat
    return stream


def windows(stream: np.ndarray, msl: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of msl+1 tokens with stride msl: examples [n, 3, msl] and the rest, for the next call."""
    n = max(0, (len(stream) - 1) // msl)
    examples = np.empty((n, 3, msl), np.int32)
    examples[:, 0] = stream[: n * msl].reshape(n, msl)
    examples[:, 1] = 1
    examples[:, 2] = stream[1 : n * msl + 1].reshape(n, msl)
    return examples, stream[n * msl :]


def padded(stream: np.ndarray, msl: int, pad: int) -> np.ndarray:
    """The last, unfilled window as one example [0 or 1, 3, msl]; padding counts for no loss."""
    m = len(stream) - 1
    if m < 1:
        return np.empty((0, 3, msl), np.int32)
    example = np.full((1, 3, msl), pad, np.int32)
    example[0, 1] = 0
    example[0, 0, :m], example[0, 1, :m], example[0, 2, :m] = stream[:-1], 1, stream[1:]
    return example


class StreamPacker:
    """Packed language modelling: the zoo's rule, with the remainder carried over from document to document."""

    rows = 3

    def __init__(self, msl: int, eos: int, pad: int, tail: str):
        self.msl, self.eos, self.pad, self.tail = msl, eos, pad, tail
        self.rest = np.empty(0, np.int32)

    def add(self, flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Examples [n, 3, msl] that these documents complete."""
        examples, self.rest = windows(np.concatenate([self.rest, join(flat, offsets, self.eos)]), self.msl)
        return examples

    def finish(self) -> np.ndarray:
        keep = self.rest if self.tail == "pad" else self.rest[:0]
        self.rest = self.rest[:0]
        return padded(keep, self.msl, self.pad)


class VslPacker:
    """Whole documents side by side: each goes into the open row that it fills best; long ones are cut at msl.

    A document of n tokens takes n places: inputs are its tokens, labels its tokens shifted, with EOS last.
    """

    rows = 5
    OPEN = 64  # rows kept open; more gain little and would hold examples back

    def __init__(self, msl: int, eos: int, pad: int, tail: str):
        self.msl, self.eos, self.pad, self.tail = msl, eos, pad, tail
        self.bins: list[list[np.ndarray]] = []  # streams of k+1 tokens that take k places
        self.free: list[int] = []

    def add(self, flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Examples [n, 5, msl] of the rows that close."""
        closed = []
        for k in range(len(offsets) - 1):
            stream = np.append(flat[offsets[k] : offsets[k + 1]], np.int32(self.eos))
            for start in range(0, len(stream) - 1, self.msl):
                self._place(stream[start : start + self.msl + 1], closed)
        return self._rows(closed)

    def _place(self, piece: np.ndarray, closed: list) -> None:
        need = len(piece) - 1
        fits = [(free, i) for i, free in enumerate(self.free) if free >= need]
        if fits:
            i = min(fits)[1]
            self.bins[i].append(piece)
            self.free[i] -= need
        else:
            i = len(self.bins)
            self.bins.append([piece])
            self.free.append(self.msl - need)
        if self.free[i] == 0 or len(self.bins) > self.OPEN:
            i = int(np.argmin(self.free))
            closed.append(self.bins.pop(i))
            self.free.pop(i)

    def finish(self) -> np.ndarray:
        """The rows still open. They hold whole documents, so `tail: drop` drops none of them."""
        closed, self.bins, self.free = self.bins, [], []
        return self._rows(closed)

    def _rows(self, bins: list[list[np.ndarray]]) -> np.ndarray:
        examples = np.zeros((len(bins), 5, self.msl), np.int32)
        examples[:, 0], examples[:, 2] = self.pad, self.pad
        for example, pieces in zip(examples, bins, strict=True):
            at = 0
            for piece in pieces:
                n = len(piece) - 1
                place = slice(at, at + n)
                example[0, place], example[1, place], example[2, place] = piece[:-1], 1, piece[1:]
                example[3, place], example[4, place] = np.arange(n - 1, -1, -1), np.arange(n)
                at += n
        return examples


def prompt_completion(
    prompt: np.ndarray, completion: np.ndarray, msl: int, eos: int, pad: int, too_long: str
) -> np.ndarray | None:
    """One example [3, msl] whose loss counts on the completion and its EOS alone; None where it cannot fit."""
    stream = np.concatenate([prompt, completion, [eos]]).astype(np.int32)
    first = len(prompt)  # index in `stream` of the first token that is learnt
    over = len(stream) - (msl + 1)
    if over > 0:
        if too_long == "drop" or over >= first:
            return None
        stream, first = stream[over:], first - over
    m = len(stream) - 1
    example = np.full((3, msl), pad, np.int32)
    example[1] = 0
    example[0, :m], example[2, :m] = stream[:-1], stream[1:]
    example[1, max(first - 1, 0) : m] = 1
    return example


def fim_segments(text: str, u: Sequence[float] | np.ndarray, rate: float, spm_rate: float):
    """Where fill-in-the-middle cuts: None to leave the text as it is, else (order, prefix, middle, suffix).

    `u`: four numbers in [0, 1) drawn from the document's hash, so that the same document is always cut alike.
    """
    if u[0] >= rate or len(text) < 3:
        return None
    a, b = sorted((int(u[1] * (len(text) + 1)), int(u[2] * (len(text) + 1))))
    return ("spm" if u[3] < spm_rate else "psm"), text[:a], text[a:b], text[b:]


def fim_join(
    order: str, prefix: np.ndarray, middle: np.ndarray, suffix: np.ndarray, sentinels: Sequence[int]
) -> np.ndarray:
    """Ids in the order that is trained on; `sentinels` = ids of (<fim_prefix>, <fim_middle>, <fim_suffix>)."""
    pre, mid, suf = ([s] for s in sentinels)
    parts = [pre, prefix, suf, suffix, mid, middle] if order == "psm" else [pre, suf, suffix, mid, prefix, middle]
    return np.concatenate(parts).astype(np.int32)
