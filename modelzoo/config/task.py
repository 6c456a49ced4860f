"""What is evaluated, and how it is written for a model: task files (configs/eval/) and templates (configs/prompt/)."""

import string
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from modelzoo.config.sections.base import Bool, Float, NonNegativeInt, PositiveInt, Section, Str

Form = Literal[
    "pubmedqa", "hoc", "classification", "multilabel", "ner", "relations", "similarity", "choice", "pubmedqa_choice"
]
CHOICE_FORMS = ("choice", "pubmedqa_choice")  # those scored as lm-evaluation-harness scores multiple choice


def placeholders(text: str) -> list[str]:
    """The field names of a format string, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def _format(text: str) -> str:
    parts = list(string.Formatter().parse(text))  # raises ValueError for a lone brace
    for _, name, spec, conversion in parts:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise ValueError(f"'{{{name}}}' is not a field; write {{name}}, and {{{{ }}}} for braces themselves")
    return text


Format = Annotated[Str, AfterValidator(_format)]


class Template(Section):
    """How an example becomes text: the model reads `source` and predicts `target`."""

    source: Format  # over the example's fields
    target: Format = " {label}"  # `{label}` becomes the label's words (for all of them, in multi-label tasks)
    labels: dict[Str, Str] = Field({})  # label: its words (hoc: default the hallmarks' names)
    alternatives: tuple[dict[Str, Str], ...] = ()  # other words for some or all labels, which prompt-search tries too
    separator: Str = "|"  # between the labels of a multi-label target
    empty: Str = "none"  # words for "no label at all", in multi-label targets
    item: Format = " {word}{label}"  # ner: one word with its tag; `labels` then give the tags' words
    description: Format = ""  # multiple choice: comes first, before the solved examples; over the asked one's fields
    between: Str = "\n\n"  # multiple choice: after each solved example (two line breaks)

    @model_validator(mode="after")
    def _one_label(self):
        if placeholders(self.target) != ["label"]:
            raise ValueError("target holds {label} once, and no other field: it is what the model predicts")
        if placeholders(self.item) not in (["word", "label"], ["label"]):
            raise ValueError("item holds {word} and then {label}, or {label} alone")
        return self


class Published(Section):
    """A score from the literature, which tables list next to ours: of another model, never of ours."""

    name: Str
    metric: Str
    score: Float
    split: Literal["dev", "test"] = "test"
    source: Str


class Origin(Section):
    """Where a task's files come from."""

    url: Str
    licence: Str
    command: Str  # that makes the layout which the task reads


class Shots(Section):
    """Solved examples before each question (few-shot), of multiple choice."""

    count: NonNegativeInt = 0
    split: Literal["train", "dev", "test"] = "train"  # whence; what is asked is never among its own
    order: Literal["random", "first"] = "random"  # drawn anew for each question, or the first ones of the split
    seed: NonNegativeInt = 1234  # of the draws; the default of lm-evaluation-harness
    same_group: Bool = False  # of the asked question's group alone (`group_field`)


class Task(Section):
    """One task file. Which keys beyond these act depends on `form`; docs/evaluation.md lists them."""

    form: Form
    data_dir: Str | None = None  # --data_dir wins
    template: Str  # a YAML file, relative to the task's file, or a packaged one
    train: Str | None = None  # file names in data_dir; pubmedqa and hoc know their own
    dev: Str | None = None
    test: Str | None = None
    fold: Annotated[NonNegativeInt, Field(le=9)] = 0  # pubmedqa: of the ten official ones
    protocol: Literal["BLUE", "BLURB", "BioGPT"] | None = None  # hoc
    decoding: Literal["likelihood", "generation"] = "likelihood"  # single labels: compare them, or write one of them
    normalize: Literal["none", "length", "pmi"] = "none"  # likelihoods: as they are, per token, or less the prior's
    id_field: Str = "id"  # columns of the files; without ids, lines count from 1
    label_field: Str = "label"
    long_fields: tuple[Str, ...] = ()  # what may be cut at its end where a text exceeds the context
    negative: Str | None = None  # relations: the class that does not count in micro-F1
    scale: dict[Str, Float] = Field({})  # similarity: label: its value
    types: dict[Str, Str] = Field({})  # ner: a type in the files: the template's type that it counts as
    sentences: Bool = True  # ner from PubTator: one example a sentence, not one a document
    published: tuple[Published, ...] = ()
    shots: Shots = Shots()  # choice, pubmedqa_choice
    group_field: Str | None = None  # choice: the column by which scores are shown too, as the subjects of MMLU
    origin: Origin | None = None  # shown where files are missing, and stored with scores
    max_examples: PositiveInt | None = None  # of a split, drawn by their ids, for a quick look (results record it)

    @model_validator(mode="after")
    def _protocol_given(self):
        if self.form == "hoc" and self.protocol is None:
            raise ValueError("protocol: hoc has three that do not compare; choose BLUE, BLURB or BioGPT")
        return self

    @model_validator(mode="after")
    def _choice_alone(self):
        if self.form not in CHOICE_FORMS and self.shots != Shots():
            raise ValueError(f"shots are for multiple choice: {', '.join(CHOICE_FORMS)}")
        if self.form != "choice" and self.group_field:
            raise ValueError("group_field is for form: choice")
        if self.form in CHOICE_FORMS and (self.decoding != "likelihood" or self.normalize != "none"):
            raise ValueError("multiple choice compares likelihoods, plain and normalised: no decoding, no normalize")
        if self.shots.same_group and not self.group_field:
            raise ValueError("shots.same_group: needs group_field, the column that names the group")
        return self
