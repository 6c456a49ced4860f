"""Task files to tasks."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from modelzoo.config.errors import UserError
from modelzoo.config.loading import load as config
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation.forms.choice import Choice, PubMedQAChoice
from modelzoo.evaluation.forms.classification import Classification
from modelzoo.evaluation.forms.hoc import HoC
from modelzoo.evaluation.forms.multilabel import MultiLabelFile
from modelzoo.evaluation.forms.ner import NER
from modelzoo.evaluation.forms.pubmedqa import PubMedQA
from modelzoo.evaluation.forms.relations import Relations
from modelzoo.evaluation.forms.similarity import Similarity
from modelzoo.evaluation.tasks.base import Task

FORMS: dict[str, type[Task]] = {
    "pubmedqa": PubMedQA,
    "hoc": HoC,
    "classification": Classification,
    "multilabel": MultiLabelFile,
    "ner": NER,
    "relations": Relations,
    "similarity": Similarity,
    "choice": Choice,
    "pubmedqa_choice": PubMedQAChoice,
}


def load_task(path: str, overrides: Sequence[str] = (), template: str | None = None) -> Task:
    """The task in a YAML file, or the bundled one of that name.

    Args:
        overrides: "key=value" over the task's file.
        template: another template's file, instead of the task's.
    """
    path = _find(path)
    c = config.load(path, Config, overrides)
    file = config.find_config(template) if template else config.find_config(c.template, os.path.dirname(path))
    name = os.path.splitext(os.path.basename(path))[0]
    return FORMS[c.form](name, c, config.load(file, Template), os.path.normpath(file))


def _find(path: str) -> str:
    if path.endswith((".yaml", ".yml")) or os.path.exists(path):
        return config.find_config(path)
    found = config.find_config(os.path.join("configs", "eval", f"{path}.yaml"))
    if os.path.exists(found):
        return found
    names = sorted(file.stem for file in Path(config.packaged_configs(), "eval").glob("*.yaml"))
    near = difflib.get_close_matches(path, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"bundled: {', '.join(names)}; or name a YAML file"
    raise UserError(f"{path}: no such task; {hint}")
