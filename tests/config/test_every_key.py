"""No key is accepted in silence: each is read by the code, has one value alone, or stands in the table of no effect."""

import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from data_preprocessing.config import Job
from modelzoo.config.idle import CSX_ONLY, NO_EFFECT
from modelzoo.config.loading.walk import models
from modelzoo.config.sections.base import OneOf, Section
from modelzoo.config.study import StudyFile
from modelzoo.config.task import Task, Template
from modelzoo.config.trainer import Config, Init, Loop
from tests.config.readers import Readers

REPO = Path(__file__).resolve().parents[2]
FILES = [f for room in ("modelzoo", "data_preprocessing") for f in (REPO / room).rglob("*.py")]
# Read by a name that is put together, or of an argument without a type: where, and the text of the reader.
DECLARED = {
    **{("Study", key): ("config/study.py", "getattr(self, name)") for key in ("budget", "learning_rate")},
    **{("Task", key): ("evaluation/tasks/base.py", "getattr(self.config, split") for key in ("train", "dev", "test")},
    **{("Job", key): ("data_preprocessing/sources/jsonl.py", f"job.{key}")
       for key in ("text_key", "prompt_key", "completion_key", "id_key", "year_key", "language_key", "licence_key",
                   "pmid_key", "pmcid_key")},
    **{("Objective", key): ("data_preprocessing/steps/encode.py", f"job.objective.{key}")
       for key in ("fim_rate", "fim_spm_rate", "too_long")},
    **{("Kinds", key): ("data_preprocessing/steps/filters.py", "getattr(kinds, ")
       for key in ("retracted", "retraction_notice", "concern", "erratum", "corrected", "comment")},
    **{(name, "compat"): ("optim/groups.py", "o.compat is not None") for name in ("Adam", "AdamW")},
    ("Init", "device"): ("config/trainer.py", '"backend_type": named'),
    ("Callback", "KeepNCheckpoints"): ("config/trainer.py", 'c.name == "KeepNCheckpoints"'),
}  # fmt: skip
# Choices that name what is always so: naming them leaves the others out.
ALWAYS = {("Logger", "ProgressLogger"), ("Logger", "JSONLLogger")}


def inside(file: Path) -> bool:
    """Whether a file is part of the schema, whose own reads do nothing."""
    return "config" in (file.parent.name, file.parent.parent.name) or file == REPO / "data_preprocessing" / "config.py"


def reachable(roots) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []

    def visit(model: type[BaseModel]) -> None:
        if model not in found:
            found.append(model)
            for field in model.model_fields.values():
                for below in models(field.annotation):
                    visit(below)

    for root in roots:
        visit(root)
    return found


def fixed(annotation: object) -> bool:
    """Whether a key takes one value alone, so that reading it would tell nothing."""
    if annotation is type(None):
        return True
    return typing.get_origin(annotation) is typing.Literal and len(typing.get_args(annotation)) == 1


def silent(readers: Readers, sections: list[type[BaseModel]]) -> list[str]:
    """The keys that nothing reads and nothing reports."""
    found = []
    for section in sections:
        for key, field in section.model_fields.items():
            known = {*NO_EFFECT.get(section.__name__, ()), *CSX_ONLY.get(section.__name__, ())}
            read = bool(readers.of(section, key)) or (section.__name__, key) in {*DECLARED, *ALWAYS}
            if issubclass(section, OneOf):  # its keys are classes, which whoever dispatches on them names
                named = readers.reads.get((None, key), set()) | readers.strings.get(key, set())
                read |= any(not inside(file) for file in named)
            if not (read or fixed(field.annotation) or key in known):
                found.append(f"{section.__name__}.{key}")
    return found


SECTIONS = reachable((Config, StudyFile, Task, Template, Job))


@pytest.fixture(scope="module")
def readers() -> Readers:
    return Readers(SECTIONS, FILES, inside)


def test_every_key_is_read_or_reported(readers):
    assert silent(readers, SECTIONS) == []


def test_the_declared_readers_read():
    for (section, key), (file, text) in DECLARED.items():
        assert any(s.__name__ == section and key in s.model_fields for s in SECTIONS), (section, key)
        path = REPO / file if (REPO / file).exists() else REPO / "modelzoo" / file
        assert text in path.read_text(encoding="utf-8"), (section, key, file)


def test_what_has_no_effect_is_read_nowhere(readers):
    by_name = {s.__name__: s for s in SECTIONS}
    for name, keys in NO_EFFECT.items():
        for key, why in keys.items():
            assert key in by_name[name].model_fields and why
            assert readers.of(by_name[name], key) == set(), (name, key)
    for name, keys in CSX_ONLY.items():
        assert set(keys) <= by_name[name].model_fields.keys()


def test_a_key_that_nobody_reads_is_found(tmp_path):
    """Names that others have (`steps`, `name`) do not hide it, nor does a validator that looks at it."""

    class Loop2(Loop):
        steps: int = 1

    class Init2(Init):
        name: str = ""
        loop: Loop2 = Loop2()

    code = tmp_path / "code.py"
    code.write_text(
        "from modelzoo.config.trainer import Init2, Checkpoint\n"
        "def f(init: Init2, other: Checkpoint, task):\n"
        "    print(other.steps, task.name)\n"
        "    loop = init.loop\n"
        "    return loop.max_steps\n"
    )
    schema = tmp_path / "config" / "trainer.py"
    schema.parent.mkdir()
    schema.write_text(
        "class Init2:\n"
        "    def _check(self):\n"
        "        assert self.name and self.loop.steps\n"
        "    @property\n"
        "    def doubled(self):\n"
        "        return self.loop.eval_steps\n"
    )
    made = Readers([Loop2, Init2], [code, schema], inside)
    found = silent(made, [Loop2, Init2])
    assert {"Loop2.steps", "Init2.name", "Loop2.eval_steps"} <= set(found)
    assert not {"Loop2.max_steps", "Init2.loop"} & set(found)
    code.write_text(code.read_text() + "def g(init: Init2):\n    return init.doubled\n")
    assert "Loop2.eval_steps" not in silent(Readers([Loop2, Init2], [code, schema], inside), [Loop2, Init2])


def test_sections_are_sections():
    assert len({s.__name__ for s in SECTIONS}) == len(SECTIONS) > 60
    others = {s for s in SECTIONS if not issubclass(s, Section)}
    assert others == {s for s in SECTIONS if s.__module__ == "data_preprocessing.config"}
