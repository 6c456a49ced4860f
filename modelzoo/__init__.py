"""A trainer for sparse language models, from Python: docs/python.md. No name costs torch before it is used.

load       a trained model that writes and scores
shards     a folder of HDF5 shards as arrays
train      a run of a config, as run.py makes it
sparsify   sparse training of any torch module by any torch optimizer; `configure` is cerebras.pytorch's spelling
UserError  what all of them raise for bad input: one line
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelzoo.config.errors import UserError as UserError
    from modelzoo.library.model import load as load
    from modelzoo.library.shards import shards as shards
    from modelzoo.library.sparsify import configure as configure
    from modelzoo.library.sparsify import sparsify as sparsify
    from modelzoo.library.train import train as train
    from modelzoo.version import VERSION as __version__

_PLACES = {
    "UserError": ("modelzoo.config.errors", "UserError"),
    "__version__": ("modelzoo.version", "VERSION"),
    "configure": ("modelzoo.library.sparsify", "configure"),
    "load": ("modelzoo.library.model", "load"),
    "shards": ("modelzoo.library.shards", "shards"),
    "sparsify": ("modelzoo.library.sparsify", "sparsify"),
    "train": ("modelzoo.library.train", "train"),
}
__all__ = ["UserError", "__version__", "configure", "load", "shards", "sparsify", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, attribute = _PLACES[name]
    globals()[name] = found = getattr(importlib.import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "_PLACES"})
