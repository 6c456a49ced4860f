"""An adapter's folder, a JSON config and tensors: PEFT's layout, or ours for a soft prompt that has no form there."""

import os
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from modelzoo.checksums import check_checksums
from modelzoo.config.errors import UserError
from modelzoo.interop.hf.tensor_files import read_tensors, require_floats
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, read_json

Files = tuple[dict[str, Any], dict[str, Tensor]]  # a JSON config and tensors
PEFT_FILES = "adapter_config.json", "adapter_model.safetensors"
OUR_FILES = "soft_prompt.json", "soft_prompt.safetensors"
NO_ADAPTER = "is not the config of an adapter"
Count = Annotated[int, Field(gt=0, le=2**20)]


class _Any(Record):
    peft_type: Annotated[str, Field(pattern=r"^\w{1,40}$")] | None = None


def require_kind(config: dict[str, Any], kind: str, path: str) -> None:
    """Refuse a config of PEFT (`path`) that is of another kind of adapter."""
    if (found := check_record(config, _Any, path, NO_ADAPTER).peft_type) != kind:
        raise UserError(f"{path}: is a {found} adapter, not {kind}")


def read_adapter(folder: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Config, tensors, and the config's path, of whichever layout the folder holds.

    Raises:
        UserError: no such files, or damaged ones.
    """
    names = next((n for n in (PEFT_FILES, OUR_FILES) if exists(os.path.join(folder, n[0]))), None)
    if names is None:
        raise UserError(f"{folder}: holds neither {PEFT_FILES[0]} nor {OUR_FILES[0]}; name an adapter's folder")
    check_checksums(folder)
    config, weights = (os.path.join(folder, n) for n in names)
    if not exists(weights) and exists(os.path.join(folder, "adapter_model.bin")):
        raise UserError(
            f"{os.path.join(folder, 'adapter_model.bin')}: is pickled and could run code, so it is not loaded; convert "
            "it to safetensors first: load it where you trust it, and model.save_pretrained(FOLDER)"
        )
    found, tensors = read_json(config, "missing"), read_tensors(weights)
    require_floats(tensors, weights)
    if not isinstance(found, dict):
        raise UserError(f"{config}: {NO_ADAPTER}")
    return found, tensors, config
