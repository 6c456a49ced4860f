"""A run's logs as studies and reports read them: only records of their form, whoever wrote the rest. No torch."""

from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.reading import exists
from modelzoo.training.logs.lines import Log, read_records

NEEDED = {"train": ("loss", "tokens"), "validation": ("loss",)}  # numbers of a metrics.jsonl's record, by its kind
LARGEST = 2.0**53  # steps and sums beyond it are no counts


def read_metrics(path: str) -> Log:
    """The records of a metrics.jsonl that a report can use.

    Raises:
        UserError: there is no such log, or it cannot be read.
    """
    return read_records(path, lambda r: _is_record(r) and all(k in r for k in NEEDED.get(r["kind"], ())))


def read_timing(path: str) -> Log:
    """The records of a timing.jsonl that a report can use; errors of `read_metrics`."""
    return read_records(path, lambda r: _is_record(r) and "seconds" in r)


def read_final_loss(path: str, steps: int) -> float | None:
    """Validation loss at step `steps` by a metrics.jsonl; None where it has none, or cannot be read."""
    try:
        records = read_metrics(path).records if exists(path) else []
    except UserError:
        return None
    return next((r["loss"] for r in records if r["kind"] == "validation" and r["step"] == steps), None)


def _is_record(record: dict[str, Any]) -> bool:
    """Whether its step is a count, and every value besides its kind a number."""
    if not _is_count(record["step"]):
        return False
    return all(_is_number(v) for k, v in record.items() if k != "kind")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)
