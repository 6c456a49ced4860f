# Not installed where types are checked: an extra, or a peer of the benchmarks.
from typing import Any

def __getattr__(name: str) -> Any: ...
