"""A Hugging Face folder as a model that can be scored: what `run.py export` wrote, or any other causal LM there."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzoo.checksums import check_checksums
from modelzoo.config.errors import UserError
from modelzoo.evaluation.inference.exported_files import check_sizes, count_bytes, read_index
from modelzoo.records import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")


class _Inner(nn.Module):
    def __init__(self, hf: "PreTrainedModel"):
        super().__init__()
        self.hf = hf

    def hidden(self, input_ids: Tensor, past: "RowCaches | None" = None) -> Tensor:
        """[b, t] ids to [b, t, hidden_size]; with `past` behind what each row holds."""
        if past is None:
            return self.hf.base_model(input_ids=input_ids.long(), use_cache=False).last_hidden_state
        t, most = input_ids.shape[1], _find_length(self.hf.config)
        assert most is not None
        found = []
        for row, cache, held in zip(input_ids.long(), past.caches, past.lengths, strict=True):
            row = row[: most - held]  # padding may go beyond the positions that there are
            x = self.hf.base_model(input_ids=row[None], past_key_values=cache, use_cache=True).last_hidden_state
            found.append(F.pad(x, (0, 0, 0, t - len(row))))
        return torch.cat(found)

    def make_cache(self, rows: int) -> "RowCaches":
        """An empty cache for `hidden`, of so many rows."""
        return RowCaches(rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] to float32 [..., vocab_size]."""
        head = self.hf.get_output_embeddings()
        assert head is not None  # of a causal LM
        return head(hidden).float()


class RowCaches:
    """A cache of transformers' for each row, as `models.cache.Cache`: rows of unlike lengths need no padding so."""

    def __init__(self, rows: int):
        from transformers import DynamicCache

        self.caches = [DynamicCache() for _ in range(rows)]

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return [cache.get_seq_length() for cache in self.caches]

    def trim(self, lengths: Sequence[int]) -> None:
        """Let each row hold its first `lengths` tokens alone."""
        for cache, held, n in zip(self.caches, self.lengths, lengths, strict=True):
            if n < held:
                cache.crop(n - held)  # negative: how many to remove, in every version of transformers

    def keep(self, rows: Sequence[int]) -> None:
        """Hold these rows alone, in this order."""
        self.caches = [self.caches[r] for r in rows]


class Exported(nn.Module):
    """Gives a transformers model the two methods by which models are scored."""

    def __init__(self, hf: "PreTrainedModel"):
        super().__init__()
        self.model = _Inner(hf)

    @property
    def length(self) -> int:
        """Positions that the model has."""
        length = _find_length(self.model.hf.config)
        assert length is not None  # `load_exported` requires it
        return length

    @property
    def vocab_size(self) -> int:
        return self.model.hf.config.vocab_size


def load_exported(path: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Exported:
    """The causal LM in `path`, in `dtype`. Only safetensors are read, and no code of the folder runs.

    Raises:
        UserError: transformers is not installed, a file was changed since the export, or transformers cannot load the
            folder or would invent weights for it.
    """
    check_checksums(path)
    read_index(path)
    config = os.path.join(path, "config.json")
    check_sizes(config, read_json(config, "missing"), count_bytes(path))
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise UserError(f"{path}: a Hugging Face folder needs transformers (pip install transformers)") from None
    logging.disable_progress_bar()  # it takes moments, and would stand between our own lines
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its tables of weights that do not fit: `_require_all` says it in one line
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
        hf, about = loaded
    except Exception as e:  # each architecture raises its own kinds for a config or weights that do not fit
        raise UserError(f"{path}: transformers cannot load it: {_one_line(e)}") from None
    finally:
        logging.set_verbosity(level)
    _require_all(path, about)
    if os.path.isdir(os.path.join(path, "adapter")):  # of a LoRA or soft-prompt run
        text = "its adapter/ is not applied, the base model alone is computed; name the run itself for both"
        print(f"note       {path}: {text}", file=sys.stderr, flush=True)
    found = Exported(hf)
    _require_sizes(path, found)
    return found.to(device)


def _require_all(path: str, about: Mapping[str, Any]) -> None:
    """Refuse weights that transformers filled with random numbers, or left out, because config.json asks for others.

    Raises:
        UserError: names the first.
    """
    names = lambda key: sorted(str(n[0] if isinstance(n, tuple) else n)[:120] for n in about.get(key) or ())
    for what, found in (
        ("lacks {}, which its config.json asks for", names("missing_keys")),
        ("has another shape of {} than its config.json asks for", names("mismatched_keys")),
        ("holds {}, for which its config.json has no place",  # other names are buffers of older versions
         [n for n in names("unexpected_keys") if n.endswith(".weight")]),
    ):  # fmt: skip
        if found:
            raise UserError(f"{path}: {what.format(found[0])}")


def _require_sizes(path: str, model: Exported) -> None:
    """Refuse a model that does not say how long its context and how large its vocabulary is."""
    config = model.model.hf.config
    sizes = {"max_position_embeddings": _find_length(config), "vocab_size": getattr(config, "vocab_size", None)}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{os.path.join(path, 'config.json')}: {key}: is missing; scores need it")


def _find_length(config: Any) -> int | None:
    """Positions of a context, by the names that architectures have for them."""
    return next((v for n in _LENGTHS if (v := getattr(config, n, None)) is not None), None)


def _one_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (text if text.isprintable() else ascii(text))[:160] or type(error).__name__
