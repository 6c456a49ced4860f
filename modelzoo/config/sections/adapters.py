"""Small trained parts added to a model that may be frozen: learned soft-prompt vectors, and LoRA."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from modelzoo.config.sections.base import NonNegativeInt, PositiveFloat, Rate, Section, Str, Width, listed
from modelzoo.config.values.patterns import check_syntax


class SoftPrompt(Section):
    """Learned vectors among the word embeddings (arXiv 2104.08691; placed as in BioGPT, arXiv 2210.10341).

    Vector i is token id `model.vocab_size + i`: the data decides where the vectors are in a sequence. `place`
    is where tasks put them in an example.
    """

    tokens: Annotated[NonNegativeInt, Field(le=2**16)]  # 0: no prompt at all
    place: Literal["before_target", "prefix"] = "before_target"
    init: Literal["random", "words", "vocab_mean", "sample_vocab", "file"] = "random"
    words: Str | None = None  # with init: words; repeated where they are fewer than `tokens`
    path: Str | None = None  # with init: file; a folder in PEFT's layout, or as `run.py export` writes one
    train: Literal["prompt", "all"] = "prompt"
    seed: NonNegativeInt | None = None  # default: trainer.init.seed

    @model_validator(mode="after")
    def _beginning(self):
        if self.init == "words" and not (self.words or "").strip():
            raise ValueError("init: words needs `words`, the text to begin with")
        if self.init == "file" and self.path is None:
            raise ValueError("init: file needs `path`, the adapter's folder")
        for key, how in (("words", "words"), ("path", "file")):
            if self.init != how and getattr(self, key) is not None:
                raise ValueError(f"{key} acts with init: {how} only, not with init: {self.init}")
        return self


MaybePrompt = Annotated[SoftPrompt | None, AfterValidator(lambda p: p if p is not None and p.tokens else None)]


class LoRA(Section):
    """Low-rank updates of frozen weights, W + alpha / r * B A (arXiv 2106.09685), by PEFT's names."""

    r: Width = 8  # rank
    alpha: PositiveFloat = 16  # alpha / r multiplies the update
    dropout: Rate = 0.0  # of the update's input
    target_modules: Annotated[tuple[Str, ...], BeforeValidator(listed), Field(min_length=1)] = (
        "*self_attn.proj_q_dense_layer",
        "*self_attn.proj_v_dense_layer",
    )  # globs (or re:EXPRESSION) over names of the decoder's linear modules
    bias: Literal["none"] = "none"
    path: Str | None = None  # an adapter's folder in PEFT's layout to begin from; r, alpha and modules must be its own

    @model_validator(mode="after")
    def _patterns_parse(self):
        check_syntax(self.target_modules)
        return self

    @property
    def scale(self) -> PositiveFloat:
        """What multiplies B A."""
        return self.alpha / self.r
