"""Tasks made from text: what several tests of evaluation build."""

from pathlib import Path

from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.tasks.base import Task

SINGLE = """
source: "{context}\\nQuestion: {question}\\nAnswer:"
target: " {label}"
labels: {"yes": "yes", "no": "no", "maybe": "maybe so", "not": "not"}
"""
MULTI = """
source: "{text}"
target: " the type is {label}."
separator: "|"
empty: empty
labels: {A: growth, B: growth factor, C: death}
"""
NER = """
source: "{text}\\nTagged:"
target: "{label}"
item: " {word}{label}"
labels: {O: "/O", B-D: "/D", I-D: "/d", B-C: "/C", I-C: "/c"}
"""


def make(folder: Path, form: str, template: str, files: dict[str, str], **keys) -> Task:
    """A task over `files` (their texts by name; `train.tsv` serves the split train) in `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "template.yaml").write_text(template)
    splits = {Path(name).stem: name for name in files if Path(name).stem in ("train", "dev", "test")}
    lines = {"form": form, "template": "template.yaml", "data_dir": f'"{folder}"', **splits, **keys}
    (folder / "task.yaml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
    return load_task(str(folder / "task.yaml"))
