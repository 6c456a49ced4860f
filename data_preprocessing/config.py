"""The settings of a preprocessing job: one typed, frozen object, from a YAML file, flags, or both."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Policy = Literal["keep", "drop", "mark"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
    captions: Literal["drop", "keep"] = "drop"  # JATS: figure and table captions
    citations: Literal["drop", "keep"] = "drop"  # JATS: in-text reference marks such as [12]
    body: bool = True  # JATS: False = title and abstract only


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

    require_abstract: bool = True  # no_abstract: a record with a title alone
    min_chars: int = Field(default=50, ge=0)  # too_short
    max_chars: int | None = Field(default=None, ge=1)  # too_long
    languages: tuple[str, ...] = ()  # language: ISO 639-2 codes as MEDLINE writes them (eng); () = any
    licences: tuple[str, ...] = ()  # licence: prefixes such as CC-BY, CC0; () = any
    boilerplate: bool = True  # boilerplate: "No abstract available", copyright lines and the like
    decontaminate: tuple[str, ...] = ()  # benchmark_pmid, benchmark_overlap: test sets (ids or texts)
    decontaminate_ngram: int = Field(default=13, ge=3)
    exact_duplicates: bool = True  # exact_duplicate: same text, case and white space apart
    near_duplicates: float | None = Field(default=None, gt=0, le=1)  # near_duplicate: Jaccard of 5-grams at least this
    near_permutations: int = Field(default=64, ge=8, le=512)


class TokenizerConfig(Frozen):
    """Which tokenizer turns text to ids, or how one is trained."""

    path: str = "train"  # tokenizer.json | folder with encoder.json + vocab.bpe (or vocab.json + merges.txt) | train
    vocab_size: int | None = Field(default=None, ge=257)  # train: size to reach (50257); given: what the model takes
    eos_token: str = "<|endoftext|>"
    train_megabytes: int = Field(default=200, ge=1)  # text that training a tokenizer reads, sampled evenly by hash
    encoder: Literal["auto", "gigatoken", "tokenizers"] = "auto"  # what turns text to ids; the ids are the same


class Objective(Frozen):
    """What is trained on the examples, and how documents are cut and packed for it."""

    name: Literal["lm", "vsl", "fim", "prompt_completion"] = "lm"
    tail: Literal["pad", "drop"] = "pad"  # the last, unfilled window of each unit and split
    fim_rate: float = Field(default=0.5, ge=0, le=1)  # share of documents that are rearranged
    fim_spm_rate: float = Field(default=0.5, ge=0, le=1)  # of those, the share in suffix-prefix-middle order
    too_long: Literal["drop", "truncate"] = "truncate"  # prompt_completion: cut the prompt's left, or drop


class Job(Frozen):
    """One run of `pubmed`, `pmc` or `jsonl`."""

    source: Literal["pubmed", "pmc", "jsonl"]
    input: tuple[str, ...] = Field(min_length=1)  # files and folders
    output: str
    tokenizer: TokenizerConfig = TokenizerConfig()
    msl: int = Field(default=2048, ge=8)
    objective: Objective = Objective()
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    seed: int = 0
    text: TextPolicy = TextPolicy()
    kinds: Kinds = Kinds()
    filters: Filters = Filters()
    newest_by: Literal["file_order", "date_revised"] = "file_order"
    text_key: str = "text"  # jsonl
    prompt_key: str = "prompt"
    completion_key: str = "completion"
    id_key: str = "id"
    compression: Literal["none", "gzip", "lzf"] = "gzip"
    shard_tokens: int = Field(default=2**23, ge=1)  # tokens that one shard holds at most
    unit_megabytes: float = Field(default=4, gt=0)  # small input files are grouped into units of about this on disk
    unreadable: Literal["refuse", "drop"] = "drop"  # a record that cannot be read: count it and go on, or stop the run
    buckets: int = Field(default=8, ge=1, le=4096)  # hash buckets of the two-pass steps
    max_file_gigabytes: float = Field(default=64, gt=0)  # refuse an input that unpacks to more

    @model_validator(mode="after")
    def _fits(self) -> "Job":
        if self.objective.name == "prompt_completion" and self.source != "jsonl":
            raise ValueError("objective.name: prompt_completion needs source: jsonl")
        return self
