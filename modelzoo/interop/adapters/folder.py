"""An adapter's folder, a JSON config and tensors: PEFT's layout, or ours for a soft prompt that has no form there."""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from modelzoo.adapter_files import NO_ADAPTER, find_files
from modelzoo.config.errors import UserError
from modelzoo.interop.hf.tensor_files import read_tensors, require_floats
from modelzoo.records import Record, check_record

Files = tuple[dict[str, Any], dict[str, Tensor]]  # a JSON config and tensors
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
    found, config, weights = find_files(folder)
    tensors = read_tensors(weights)
    require_floats(tensors, weights)
    return found, tensors, config
