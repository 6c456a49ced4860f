"""The table of a job's keys that act for some jobs only: what is asked for in vain is reported, with its line."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_preprocessing.config import Job
from modelzoo.config.loading.yaml12 import Document, Path

_ARTICLES = ("pubmed", "pmc")
_Condition = tuple[Callable[[Job], bool], str]


def _of(*sources: str) -> _Condition:
    return lambda job: job.source in sources, f"acts on {' and '.join(sources)} only"


def _is_pairs(job: Job) -> bool:
    return job.objective.name == "prompt_completion"


_PAIRS = (_is_pairs, "acts with objective.name: prompt_completion only")
_FIM = (lambda job: job.objective.name == "fim", "acts with objective.name: fim only")
CONDITIONS: Mapping[str, _Condition] = {  # key: for which jobs it acts, and that in words
    **dict.fromkeys(("text.labels",), _of("pubmed", "pmc", "bioc")),
    **dict.fromkeys(("text.scripts", "text.other_abstract"), _of(*_ARTICLES)),
    **dict.fromkeys(("text.vernacular_title", "text.brackets", "newest_by"), _of("pubmed")),
    **dict.fromkeys(("text.tables", "text.captions", "text.body"), _of("pmc", "bioc")),
    "text.citations": _of("pmc"),
    **dict.fromkeys(
        (f"kinds.{k}" for k in ("retracted", "retraction_notice", "concern", "erratum", "corrected", "comment")),
        _of(*_ARTICLES),
    ),
    **dict.fromkeys(
        ("id_key", "pmid_key", "pmcid_key", "year_key", "language_key", "licence_key"),
        _of("jsonl"),
    ),
    "text_key": (lambda job: job.source == "jsonl" and not _is_pairs(job), "acts on jsonl of texts only"),
    **dict.fromkeys(("prompt_key", "completion_key", "objective.too_long"), _PAIRS),
    "objective.tail": (lambda job: not _is_pairs(job), "a pair is an example of its own, which leaves no tail"),
    **dict.fromkeys(("objective.fim_rate", "objective.fim_spm_rate"), _FIM),
    "filters.near_permutations": (
        lambda job: job.filters.near_duplicates is not None,
        "acts with near_duplicates only",
    ),
    "filters.decontaminate_ngram": (lambda job: bool(job.filters.decontaminate), "acts with decontaminate only"),
    "tokenizer.train_megabytes": (lambda job: job.tokenizer.path == "train", "acts with tokenizer.path: train only"),
}


def idle(doc: Document, job: Job) -> Iterator[str]:
    """A line for each key of `doc` that is given, differs from its default, and changes nothing in the job's output."""
    for key, (acts, why) in CONDITIONS.items():
        path: Path = tuple(key.split("."))
        found: Any = doc.data
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None and found != _default(path) and not acts(job):
            yield f"{doc.mark(path)}: {key}: {why}"


def _default(path: Path) -> Any:
    section: Any = Job
    for part in path[:-1]:
        section = type(section.model_fields[part].default)
    return section.model_fields[path[-1]].default
