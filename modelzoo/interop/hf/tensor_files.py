"""Safetensors files of others, and ours for others: every way in which one can be damaged is one line."""

import os
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.files import apply_umask
from modelzoo.finite import are_finite
from modelzoo.reading import open_regular

MASKS = "masks.safetensors"  # of a sparse model's folder


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        UserError: there is no such file, it is no regular one, or its header does not describe its content.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise UserError(f"{path}: has {size} bytes; is not a whole safetensors file")
        found = safetensors.torch.load_file(path)
        if odd := next((n for n in found if len(n) > 400 or not n.isprintable()), None):
            raise UserError(f"{path}: holds a tensor named {odd[:80]!a}, which is no name")
        return found
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or _one_line(e)})") from None
    except Exception as e:  # the library raises its own, KeyError for dtypes that torch lacks, and torch's RuntimeError
        raise UserError(f"{path}: is not a whole safetensors file ({_one_line(e)})") from None


def write_tensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file as transformers and PEFT read it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        safetensors.torch.save_file({n: x.contiguous() for n, x in tensors.items()}, path, metadata={"format": "pt"})
        apply_umask(path)
    except safetensors.SafetensorError as e:  # an error of the file system, in words
        raise OSError(None, _one_line(e), path) from None


def require_floats(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights whose numbers are integers or complex: their bytes mean something else.

    Raises:
        UserError: names the first.
    """
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise UserError(f"{where}: {name} holds {str(x.dtype).removeprefix('torch.')}; weights are floating-point")


def require_finite(tensors: Mapping[str, Tensor], dtype: str, out: str) -> None:
    """Refuse weights that a format of fewer bits cannot hold.

    Raises:
        UserError: names the first.
    """
    for name, x in tensors.items():
        if not are_finite([x]):
            raise UserError(f"{out}: {name} has values beyond what {dtype} holds; give --dtype bfloat16 or float32")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:120]
    return (text if text.isprintable() else ascii(text)) or type(error).__name__
