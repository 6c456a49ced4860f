"""The examples of a task's split, and what a person should know of them."""

from collections.abc import Sequence

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.examples.remarks import Remark, Remarks
from modelzoo.evaluation.tasks.base import Task


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
