"""Keys and values of the tokens that a batch of rows holds so far, so that a further token costs a token's work.

    cache = model.model.make_cache(rows)
    hidden = model.model.hidden(ids, past=cache)     # [rows, t] ids behind what each row holds
    cache.trim(lengths)                              # rows that took fewer than t tokens forget the padding

Rows may differ in length. Each row's tokens lie at slots 0, 1, ... of the row: a token's slot is its position.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SPARE = 64  # slots beyond those that are asked for: a cache grows by copies


class LayerCache:
    """One layer's keys and values, [rows, heads, slots, head_dim]. What lies beyond a row's length is finite."""

    def __init__(self):
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor, past: "Cache") -> tuple[Tensor, Tensor]:
        """Put the new tokens' keys and values [rows, heads, t, head_dim] behind those of their rows.

        Returns:
            All slots up to the longest row's end.
        """
        self.keys, self.values = past.put(self.keys, k), past.put(self.values, v)
        return self.keys[:, :, : past.end], self.values[:, :, : past.end]


class Cache:
    """The caches of all layers, and the rows' lengths.

    Attributes:
        lengths: tokens that each row holds.
        positions: [1 or rows, t], of the tokens that are being appended.
        end: slots in use once they are.
    """

    positions: Tensor

    def __init__(self, rows: int, layers: int):
        self.lengths = [0] * rows
        self.layers = [LayerCache() for _ in range(layers)]
        self.end = 0

    @property
    def even(self) -> bool:
        """Whether all rows are equally long."""
        return min(self.lengths) == max(self.lengths)

    def begin(self, t: int, device: torch.device) -> None:
        """Make ready for `t` further tokens in each row."""
        starts = torch.tensor(self.lengths[:1] if self.even else self.lengths, device=device)
        self.positions = starts.unsqueeze(1) + torch.arange(t, device=device)
        self.end = max(self.lengths) + t

    def finish(self, t: int) -> None:
        """Count the tokens that every layer has taken."""
        self.lengths = [n + t for n in self.lengths]

    def sees_all(self, t: int) -> bool:
        """Whether plain causal attention serves: a first stretch, or one token a row behind equally many."""
        return max(self.lengths) == 0 or (t == 1 and self.even)

    def put(self, held: Tensor | None, new: Tensor) -> Tensor:
        """`held` [rows, heads, slots, head_dim] with `new` in the slots `positions`; longer where it is full."""
        slots = 0 if held is None else held.shape[2]
        if held is None or slots < self.end:
            b, h, _, d = new.shape
            grown = new.new_zeros(b, h, max(self.end + SPARE, slots * 3 // 2), d)
            if held is not None:
                grown[:, :, :slots] = held
            held = grown
        if self.even:
            held[:, :, self.lengths[0] : self.end] = new
        else:
            held[torch.arange(len(new), device=new.device).unsqueeze(1), :, self.positions] = new.transpose(1, 2)
        return held

    def trim(self, lengths: Sequence[int]) -> None:
        """Let each row hold its first `lengths` tokens alone."""
        self.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Hold these rows alone, in this order."""
        self.lengths = [self.lengths[r] for r in rows]
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                at = torch.tensor(rows, device=layer.keys.device)
                layer.keys, layer.values = layer.keys[at], layer.values[at]
