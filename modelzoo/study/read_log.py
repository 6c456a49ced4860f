"""A run's logs as studies and reports read them: only records of their form, whoever wrote the rest. No torch."""

from collections.abc import Callable, Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.reading import exists
from modelzoo.training import logs

NEEDED = {"train": ("loss", "tokens"), "validation": ("loss",)}  # numbers of a metrics.jsonl's record, by its kind
LARGEST = 2.0**53  # steps and sums beyond it are no counts


def read_metrics(path: str) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics.jsonl, and how many lines were left out since they are none.

    Raises:
        UserError: there is no such log, or it cannot be read.
    """
    return _read(path, lambda r: NEEDED.get(r["kind"], ()))


def read_timing(path: str) -> tuple[list[dict[str, Any]], int]:
    """The records of a timing.jsonl, and how many were left out; errors of `read_metrics`."""
    return _read(path, lambda r: ("seconds",))


def read_final_loss(path: str, steps: int) -> float | None:
    """Validation loss at step `steps` by a metrics.jsonl; None where it has none, or cannot be read."""
    try:
        records = read_metrics(path)[0] if exists(path) else []
    except UserError:
        return None
    return next((r["loss"] for r in records if r["kind"] == "validation" and r["step"] == steps), None)


def _read(path: str, needed: Callable[[dict[str, Any]], Sequence[str]]) -> tuple[list[dict[str, Any]], int]:
    found, left_out = logs.read_whole(path)
    kept = [r for r in found if _is_record(r) and all(k in r for k in needed(r))]
    return kept, left_out + len(found) - len(kept)


def _is_record(record: dict[str, Any]) -> bool:
    """Whether its step is a count, and every value besides its kind a number."""
    if not _is_count(record["step"]):
        return False
    return all(_is_number(v) for k, v in record.items() if k != "kind")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)
