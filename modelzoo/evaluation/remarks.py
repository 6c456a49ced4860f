"""What a task's files hold and is left out, or is taken although it is hardly meant: counted, with the first place."""

from collections.abc import Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples import Example, Remark
from modelzoo.evaluation.task import Task


class Remarks:
    """Counts by what they are of, in the order in which that was first met."""

    def __init__(self) -> None:
        self._found: dict[str, list[Any]] = {}
        self.notes: list[str] = []  # what is no count

    def add(self, what: str, where: str) -> None:
        """Count one more of `what` (documents without a word: left out), which is at `where`."""
        self._found.setdefault(what, [0, where])[0] += 1

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For results: count and first place by what."""
        return {what: {"count": n, "first": where} for what, (n, where) in self._found.items()}

    def describe(self) -> list[str]:
        """A line for each."""
        return self.notes + [f"{n:,} {what} (first: {where[:200]})" for what, (n, where) in self._found.items()]


def read_examples(task: Task, split: str, fold: int | None = None) -> tuple[list[Example], Remarks]:
    """The examples of a split, as `Task.examples` reads them, and what a person should know of them.

    Raises:
        UserError: of `Task.examples`; or no example has a text.
    """
    remarks = Remarks()
    examples = task.examples(split, fold, remarks.add)
    remark_examples(task, split, examples, remarks.add)
    return examples, remarks


def remark_examples(task: Task, split: str, examples: Sequence[Example], remark: Remark) -> None:
    """Remark examples without a label, and fields of the template that are empty.

    Raises:
        UserError: all fields are, in every example.
    """
    names, bare = task.fields(), 0
    for e in examples:
        if e.gold is None:
            remark("without a label: not scored", e.id)
        empty = [name for name in names if not e.fields.get(name, "-").strip()]
        bare += 0 < len(names) == len(empty)
        for name in empty:
            remark(f"with an empty {{{name}}}: taken as they are", e.id)
    if bare and bare == len(examples):
        fields = ", ".join(f"{{{name}}}" for name in names)
        raise UserError(
            f"{task.name}: {fields}: empty in every example of the {split} split, so there is nothing to read"
        )
