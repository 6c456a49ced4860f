"""The settings of a preprocessing job: one typed, frozen object, from a YAML file, flags, or both."""

import os
import stat
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from data_preprocessing import limits
from modelzoo.config.errors import UserError
from modelzoo.config.sections.base import Bool, Str
from modelzoo.data import hub


def _refuse_nul(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path holds no NUL character")
    return path


# Strict, as the trainer's; without bounds of their own, which would win over those of the fields
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Policy = Literal["keep", "drop", "mark"]
PathName = Annotated[Str, Field(min_length=1, max_length=4096), AfterValidator(_refuse_nul)]
Paths = Annotated[tuple[PathName, ...], Field(max_length=100_000)]
Word = Annotated[Str, Field(max_length=200)]
Words = Annotated[tuple[Word, ...], Field(max_length=1000)]
Vocabulary = Annotated[Int, Field(ge=257, le=limits.VOCABULARY)]
Megabytes = Annotated[Float, Field(gt=0, le=limits.MEGABYTES)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TextPolicy(Frozen):
    """How a record's XML becomes a document's text."""

    labels: Literal["keep", "drop"] = "keep"  # "METHODS: ..." of structured abstracts
    scripts: Literal["readable", "unicode", "plain"] = (
        "readable"  # <sup>, <sub>: 10^6 and CO2 | 10⁶ and CO₂ | 106 and CO2
    )
    vernacular_title: Literal["drop", "append"] = "drop"
    other_abstract: Literal["drop", "append", "if_missing"] = "drop"  # abstracts in other languages or plain language
    brackets: Literal["strip", "keep"] = "strip"  # MEDLINE puts translated titles in [brackets].
    tables: Literal["drop", "text"] = "drop"  # JATS: drop, or one line per row with cells joined by " | "
    captions: Literal["drop", "keep"] = "drop"  # JATS: captions of figures and tables
    citations: Literal["drop", "keep"] = "drop"  # JATS: [12], (Li, 2001); years alone stay
    body: Bool = True  # JATS: False = title and abstract only


class Kinds(Frozen):
    """What becomes of records that correct or withdraw others. `mark` puts a tag line such as [Retracted] in front."""

    retracted: Policy = "drop"  # the withdrawn article itself
    retraction_notice: Policy = "drop"
    concern: Policy = "keep"  # an article with an expression of concern
    erratum: Policy = "drop"  # a published erratum (the notice)
    corrected: Policy = "keep"  # an article that an erratum corrects
    comment: Policy = "keep"


class Filters(Frozen):
    """Each names the reason under which it drops. Order: as listed here; the first that objects is the one counted."""

    require_abstract: Bool = True  # no_abstract: a record with a title alone
    min_chars: Int = Field(default=50, ge=0, le=limits.CHARACTERS)  # too_short; of a pair both together
    max_chars: Int | None = Field(default=None, ge=1, le=limits.CHARACTERS)  # too_long
    languages: Words = ()  # language: ISO 639-2 codes as MEDLINE writes them (eng); () = any
    licences: Words = ()  # licence: prefixes such as CC-BY, CC0; () = any
    boilerplate: Bool = True  # boilerplate: "No abstract available", copyright lines and the like
    decontaminate: Paths = ()  # benchmark_pmid, benchmark_overlap: test sets (ids or texts)
    decontaminate_ngram: Int = Field(default=13, ge=3, le=1000)
    exact_duplicates: Bool = True  # exact_duplicate: same text, case and white space apart
    near_duplicates: Float | None = Field(default=None, gt=0, le=1)  # near_duplicate: Jaccard of 5-grams at least this
    near_permutations: Int = Field(default=64, ge=8, le=512)


class TokenizerConfig(Frozen):
    """Which tokenizer turns text to ids, or how one is trained."""

    path: PathName = "train"  # tokenizer.json | folder with encoder.json + vocab.bpe (vocab.json + merges.txt) | train
    vocab_size: Vocabulary | None = None  # train: size to reach (50257); given: what the model takes
    eos_token: Word = "<|endoftext|>"
    train_megabytes: Int = Field(default=200, ge=1, le=limits.MEGABYTES)  # text to train on, sampled evenly by hash
    encoder: Literal["auto", "gigatoken", "tokenizers"] = "auto"  # what turns text to ids; the ids are the same


class Objective(Frozen):
    """What is trained on the examples, and how documents are cut and packed for it."""

    name: Literal["lm", "vsl", "fim", "prompt_completion"] = "lm"
    tail: Literal["pad", "drop"] = "pad"  # the last, unfilled window of each unit and split
    fim_rate: Float = Field(default=0.5, ge=0, le=1)  # share of documents that are rearranged
    fim_spm_rate: Float = Field(default=0.5, ge=0, le=1)  # of those, the share in suffix-prefix-middle order
    too_long: Literal["drop", "truncate"] = "truncate"  # prompt_completion: cut the prompt's left, or drop


class Job(Frozen):
    """One run of `pubmed`, `pmc`, `bioc` or `jsonl`."""

    source: Literal["pubmed", "pmc", "bioc", "jsonl"]
    input: Paths = Field(min_length=1)  # files and folders
    output: PathName
    tokenizer: TokenizerConfig = TokenizerConfig()
    msl: Int = Field(default=2048, ge=8, le=limits.MSL)
    objective: Objective = Objective()
    val_fraction: Float = Field(default=0.05, ge=0, lt=1)
    seed: Int = Field(default=0, ge=-(2**63), lt=2**63)
    text: TextPolicy = TextPolicy()
    kinds: Kinds = Kinds()
    filters: Filters = Filters()
    newest_by: Literal["file_order", "date_revised"] = "file_order"
    text_key: Word = "text"  # jsonl; content.text is `text` in the object `content`
    prompt_key: Word = "prompt"
    completion_key: Word = "completion"
    id_key: Word = "id"  # of records with one id the newest is kept; without an id each record is its own
    pmid_key: Word = "pmid"  # these may be paths, such as metadata.year
    pmcid_key: Word = "pmcid"
    year_key: Word = "year"
    language_key: Word = "language"
    licence_key: Word = "licence"  # or license
    compression: Literal["none", "gzip", "lzf"] = "gzip"
    shard_tokens: Int = Field(default=2**23, ge=1, le=limits.SHARD_TOKENS)  # tokens that one shard holds at most
    unit_megabytes: Megabytes = 4  # small input files are grouped into units of about this on disk
    unreadable: Literal["refuse", "drop"] = "drop"  # a record that cannot be read: count it and go on, or stop the run
    buckets: Int = Field(default=8, ge=1, le=limits.BUCKETS)  # calls of the steps across the corpus; many units: more
    max_file_gigabytes: Float = Field(default=64, gt=0, le=10_000)  # refuse an input that unpacks to more

    @model_validator(mode="after")
    def _fits(self) -> "Job":
        if self.objective.name == "prompt_completion" and self.source != "jsonl":
            raise ValueError("objective.name: prompt_completion needs source: jsonl")
        return self


def check_paths(job: Job, where: Callable[[tuple[str | int, ...]], object]) -> None:
    """Refuse a path that a job reads and that is not there, or is neither a regular file nor a folder.

    Args:
        where: says where a key was written, for example `job.yaml:3`.

    Raises:
        UserError: one line for each, with place and key.
    """
    read = [(("input", k), path) for k, path in enumerate(job.input)]
    read += [(("filters", "decontaminate", k), path) for k, path in enumerate(job.filters.decontaminate)]
    words = job.tokenizer.path
    read += [] if words == "train" else [(("tokenizer", "path"), words)]
    problems = [
        f"{where(key)}: {'.'.join(map(str, key))}: "
        + (_explain_tokenizer(path) if path == words and not os.path.lexists(path) else f"{path}: {reason}")
        for key, path in read
        if (reason := _find_fault(path))
    ]
    if problems:
        raise UserError("\n".join(problems[:20]))


def _explain_tokenizer(path: str) -> str:
    return hub.explain_missing(path, "a tokenizer.json, a folder with one, or `train`", hub.TOKENIZER)


def _find_fault(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such file or folder"
    except OSError as e:
        return f"cannot be read ({e.strerror})"
    regular = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return None if regular else "is neither a file nor a folder (a pipe, a socket or a device)"
