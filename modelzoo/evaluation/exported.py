"""A Hugging Face folder as a model that can be scored: what `run.py export` wrote, or any other causal LM there."""

import json
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Inner(nn.Module):
    def __init__(self, hf: "PreTrainedModel"):
        super().__init__()
        self.hf = hf

    def hidden(self, input_ids: Tensor) -> Tensor:
        """[b, t] ids to [b, t, hidden_size]."""
        return self.hf.base_model(input_ids=input_ids.long(), use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] to float32 [..., vocab_size]."""
        head = self.hf.get_output_embeddings()
        assert head is not None  # of a causal LM
        return head(hidden).float()


class Exported(nn.Module):
    """Gives a transformers model the two methods by which models are scored."""

    def __init__(self, hf: "PreTrainedModel"):
        super().__init__()
        self.model = _Inner(hf)

    @property
    def length(self) -> int:
        """Positions that the model has."""
        return self.model.hf.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.model.hf.config.vocab_size


def is_exported(path: str) -> bool:
    """Whether `path` is a Hugging Face model folder."""
    return os.path.isfile(os.path.join(path, "config.json"))


def load_exported(path: str, device: torch.device) -> Exported:
    """The causal LM in `path`, in float32. Only safetensors are read, and no code of the folder runs.

    Raises:
        UserError: transformers is not installed, or cannot load the folder.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UserError(f"{path}: a Hugging Face folder needs transformers (pip install transformers)") from None
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as e:
        raise UserError(f"{path}: transformers cannot load it: {str(e).splitlines()[0][:160]}") from None
    return Exported(hf).to(device)
