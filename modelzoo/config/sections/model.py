"""The `model` section: every field of Model Zoo's gpt2/gpt3 and gptj configs, honoured or refused by name."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from modelzoo.config.loading.renamed import Renamed
from modelzoo.config.sections.base import (
    Bool,
    Float,
    Int,
    Many,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Section,
    Str,
    Width,
)
from modelzoo.config.sections.initializer import Initializer
from modelzoo.config.sections.not_supported import NOT_SUPPORTED
from modelzoo.config.values.patterns import check_syntax


def _idle(key: str, value: Any) -> bool:
    """Whether a field of NOT_SUPPORTED asks for nothing."""
    one_expert = key in ("moe", "moe_params") and value == {"num_experts": 1}
    return value is None or value == {} or value == NOT_SUPPORTED[key][0] or one_expert


class LRAdjustmentGroup(Section):
    """Parameters whose learning rate is multiplied by `scale` (muP)."""

    param_filter_patterns: Str | tuple[Str, ...]  # globs over parameter names, or re:EXPRESSION
    scale: PositiveFloat = 1.0

    @property
    def patterns(self) -> tuple[Str, ...]:
        found = self.param_filter_patterns
        return (found,) if isinstance(found, str) else found

    @model_validator(mode="after")
    def _patterns_parse(self):
        check_syntax(self.patterns)
        return self


class ExtraAttentionParams(Section):
    """What `attention_module: multiquery_attention` takes."""

    num_kv_groups: Width | None = None  # heads of keys and values; must divide num_heads


class PosScalingExtraArgs(Section):
    """What `pos_scaling_type: llama3` takes: waves between two lengths are stretched by a part of the factor."""

    low_freq_factor: PositiveFloat = 1.0  # original_max_position_embeddings over the longest such wave
    high_freq_factor: PositiveFloat = 4.0  # and over the shortest; shorter waves stay as they are
    original_max_position_embeddings: Width = 8192


# Defaults of the zoo's `gptj` that differ from those of its `gpt2`.
GPTJ = {"position_embedding_type": "rotary", "embd_pdrop": 0.1, "use_ffn_bias": False, "scale_qk_dot_by_d": False}


class GPTConfig(Section):
    """A decoder as Model Zoo describes it.

    The names `gpt2` and `gpt3` are the same model. In `gptj` attention and feed-forward of a layer read the same input,
    and their outputs are added together (GPT-J; with `use_untied_layer_norm`, GPT-NeoX).
    """

    renamed: ClassVar[tuple[Renamed, ...]] = (Renamed("residual_dropout_rate", "dropout_rate", lambda v: v),)

    name: Literal["gpt2", "gpt3", "gptj"] = "gpt3"

    vocab_size: Annotated[PositiveInt, Field(le=512_000)] = 50257  # at least the tokenizer's
    max_position_embeddings: Width = 1024  # longest sequence, tokens
    # token in front of each text in generate, score and fine-tuning; import sets it as the model's own tokenizer does
    bos_token_id: Annotated[NonNegativeInt, Field(lt=512_000)] | None = None
    embedding_dropout_rate: Rate | None = Field(None, alias="embd_pdrop")
    position_embedding_type: Literal["learned", "fixed", "rotary", "alibi"] | None = "learned"
    position_embedding_offset: Annotated[NonNegativeInt, Field(le=2**20)] = 0
    hidden_size: Width = 768  # width
    share_embedding_weights: Bool = True  # the head is the word embedding
    embedding_layer_norm: Bool = False  # a norm after the embeddings
    rotary_dim: Width | None = None  # rotated dimensions of a head; default: a quarter
    rope_theta: PositiveFloat = 10000.0  # base of rotary frequencies
    fold_rope_consts: Bool = False  # no effect: a compile hint
    pos_scaling_factor: PositiveFloat = 1.0
    pos_scaling_type: Literal["linear", "llama3"] = "linear"
    pos_scaling_extra_args: PosScalingExtraArgs | None = None  # of llama3

    num_hidden_layers: Many = 12  # decoder layers
    dropout_rate: Rate = 0.1  # of residual branches
    norm_type: Literal["layernorm", "biasless-layernorm", "rmsnorm"] = "layernorm"  # before each branch and the head
    layer_norm_epsilon: PositiveFloat = 1e-5  # added to the variance
    use_untied_layer_norm: Bool = False  # of gptj: a second norm, the feed-forward's (GPT-NeoX)

    num_heads: Width = 12  # must divide the attention's width
    attention_module: Literal["aiayn_attention", "multiquery_attention"] = "aiayn_attention"
    extra_attention_params: ExtraAttentionParams = ExtraAttentionParams()  # of multiquery_attention
    attention_type: Literal["dot_product", "scaled_dot_product"] = "scaled_dot_product"
    attention_inner_dim: Width | None = None  # width over all heads; default: hidden_size
    use_projection_bias_in_attention: Bool = True
    use_ffn_bias_in_attention: Bool = True
    attention_dropout_rate: Rate | None = 0.1  # of attention weights
    attention_softmax_fp32: Bool = True  # no effect: sums are always in float32
    attention_kernel: Str | None = None  # no effect: a compile hint
    scale_qk_dot_by_layer_idx: Bool = False

    filter_size: Width = 3072  # width of the feed-forward layer; 4 x hidden_size as a rule
    nonlinearity: Literal[
        "gelu",
        "gelu_new",
        "quick_gelu",
        "relu",
        "silu",
        "tanh",
        "sigmoid",
        "squared_relu",
        "geglu",
        "reglu",
        "swiglu",
        "linear",
    ] = "gelu"
    use_ffn_bias: Bool = True
    use_bias_in_output: Bool = False  # of the head

    initializer_range: PositiveFloat = 0.02  # standard deviation where no initializer is named
    embedding_initializer: Initializer | None = None
    initializer: Initializer | None = None
    output_layer_initializer: Initializer | None = None
    ffn_initializer: Initializer | None = None
    ffn_output_layer_initializer: Initializer | None = None

    # muP (Tensor Programs V, arXiv 2203.03466; Model Zoo's form)
    mup_base_hidden_size: PositiveFloat | None = None
    mup_base_filter_size: PositiveFloat | None = None
    embeddings_scale: Float = 1.0
    scale_qk_dot_by_d: Bool | None = None
    attention_logits_alpha: Float = 1.0
    scale_output_logits_by_d: Bool = True
    output_logits_alpha: Float | None = None
    lr_adjustment_groups: dict[Str, LRAdjustmentGroup] | None = None

    loss_scaling: Literal["num_tokens", "batch_size"] = "num_tokens"  # what the summed loss is divided by
    loss_weight: PositiveFloat = 1.0
    compute_eval_metrics: Bool = True  # false leaves accuracy out of validations

    # Why a key that the zoo knows is unknown here (config.explain says it); with its neutral value it is no request.
    refused: ClassVar[dict[str, str]] = {key: what for key, (_, what) in NOT_SUPPORTED.items()}

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if k not in NOT_SUPPORTED or not _idle(k, v)}

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_gptj(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("name") != "gptj":
            return value
        missing = {k: v for k, v in GPTJ.items() if k not in value}
        if "embedding_dropout_rate" in value:
            missing.pop("embd_pdrop", None)
        return {**value, **missing}

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys of later architectures where they are idle: files of other models are as they were."""
        idle = {k for k in LATER if getattr(self, k) == type(self).model_fields[k].default}
        return {k: v for k, v in handler(self).items() if k not in idle}

    @model_validator(mode="after")
    def _consistent(self):
        if self.inner_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide the attention width {self.inner_dim}")
        groups, multiquery = self.extra_attention_params.num_kv_groups, self.attention_module == "multiquery_attention"
        if multiquery and groups is None:
            raise ValueError("multiquery_attention needs extra_attention_params.num_kv_groups (1: one for all heads)")
        if groups is not None and not multiquery:
            raise ValueError("extra_attention_params.num_kv_groups is for attention_module: multiquery_attention")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"extra_attention_params.num_kv_groups {groups} must divide num_heads {self.num_heads}")
        if self.use_untied_layer_norm and not self.parallel:
            raise ValueError("use_untied_layer_norm is for name: gptj; other models have two norms in a layer always")
        rotated = self.rotary_width
        if self.position_embedding_type == "rotary" and not (0 < rotated <= self.head_dim and rotated % 2 == 0):
            raise ValueError(f"rotary_dim {rotated} must be even, above 0 and at most the head's {self.head_dim}")
        if self.bos_token_id is not None and self.bos_token_id >= self.vocab_size:
            raise ValueError(f"bos_token_id {self.bos_token_id} must be below vocab_size {self.vocab_size}")
        if self.position_embedding_offset and self.position_embedding_type != "learned":
            raise ValueError("position_embedding_offset is for learned positions")
        if self.pos_scaling_factor != 1.0 and self.position_embedding_type not in ("rotary", "alibi"):
            raise ValueError("pos_scaling_factor is for rotary and alibi positions")
        if self.pos_scaling_type == "llama3" and self.position_embedding_type != "rotary":
            raise ValueError("pos_scaling_type llama3 is for rotary positions")
        if self.pos_scaling_extra_args is not None and self.pos_scaling_type != "llama3":
            raise ValueError("pos_scaling_extra_args is for pos_scaling_type: llama3")
        if self.waves.low_freq_factor >= self.waves.high_freq_factor:
            raise ValueError("pos_scaling_extra_args.low_freq_factor must be below high_freq_factor")
        if self.position_embedding_type == "fixed" and self.hidden_size % 2:
            raise ValueError(f"fixed positions need an even hidden_size, got {self.hidden_size}")
        if (self.mup_base_hidden_size is None) != (self.mup_base_filter_size is None):
            raise ValueError("muP needs both mup_base_hidden_size and mup_base_filter_size")
        if self.mup_base_hidden_size is None and self.output_logits_alpha is not None:
            raise ValueError("output_logits_alpha has no meaning without mup_base_hidden_size")
        if self.loss_scaling == "num_tokens" and self.loss_weight != 1.0:
            raise ValueError("loss_weight belongs to loss_scaling: batch_size; num_tokens takes 1.0")
        if unknown := set(self.lr_adjustment_groups or ()) - set(MUP_GROUPS):
            raise ValueError(
                f"lr_adjustment_groups: unknown {', '.join(sorted(unknown))}; known: {', '.join(MUP_GROUPS)}"
            )
        return self

    @property
    def inner_dim(self) -> Int:
        """Width of queries, keys and values over all heads."""
        return self.attention_inner_dim or self.hidden_size

    @property
    def head_dim(self) -> Int:
        return self.inner_dim // self.num_heads

    @property
    def kv_heads(self) -> Int:
        """Heads of keys and values; each serves num_heads / kv_heads heads of queries (arXiv 2305.13245)."""
        groups = self.extra_attention_params.num_kv_groups
        return groups if self.attention_module == "multiquery_attention" and groups else self.num_heads

    @property
    def kv_dim(self) -> Int:
        """Width of keys, and of values, over all their heads."""
        return self.kv_heads * self.head_dim

    @property
    def parallel(self) -> Bool:
        """Whether attention and feed-forward of a layer read the same input."""
        return self.name == "gptj"

    @property
    def tied_norms(self) -> Bool:
        """Whether a layer has one norm, which attention and feed-forward share."""
        return self.parallel and not self.use_untied_layer_norm

    @property
    def rotary_width(self) -> Int:
        """Rotated dimensions of each head: by default a quarter of the head (as in GPT-NeoX and the zoo)."""
        return self.rotary_dim or int(self.hidden_size // self.num_heads * 0.25)

    @property
    def pos_stretch(self) -> Float:
        """What positions are divided by, of all waves alike."""
        return self.pos_scaling_factor if self.pos_scaling_type == "linear" else 1.0

    @property
    def waves(self) -> PosScalingExtraArgs:
        """Which waves llama3's scaling stretches."""
        return self.pos_scaling_extra_args or PosScalingExtraArgs()

    @property
    def mup(self) -> Bool:
        return self.mup_base_hidden_size is not None


LATER = (  # left out of what is written, where idle
    *("attention_module", "extra_attention_params", "use_untied_layer_norm"),
    *("pos_scaling_type", "pos_scaling_extra_args", "bos_token_id"),
)
# Model Zoo's learning-rate groups and the parameters they hold (globs over our parameter names, which are the zoo's).
MUP_GROUPS = {
    "embedding": ("*embedding*weight",),
    "decoder_kernel": ("*decoder*dense*weight", "*decoder*linear*weight"),
    "decoder_attention": ("*decoder*attn*dense*weight",),
    "decoder_input_ffn": ("*decoder*ffn.ffn.[!1]*weight",),
    "decoder_output_ffn": ("*decoder*ffn.ffn.[1]*weight",),
}
# Model fields that a resumed run may change: they act on training alone, or not on the values.
TRAINING_ONLY = {
    *("name", "dropout_rate", "embedding_dropout_rate", "attention_dropout_rate", "loss_scaling", "loss_weight"),
    *("lr_adjustment_groups", "compute_eval_metrics", "initializer_range", "max_position_embeddings"),
    *("fold_rope_consts", "attention_kernel", "attention_softmax_fp32"),
}


def find_difference(saved: Mapping[str, Any], model: GPTConfig) -> tuple[str, Any, Any] | None:
    """The first key, with both values, by which a written model section computes something else than `model`.

    Keys that `saved` does not name are as `model` has them, but for those of later architectures, which are left out
    where idle.
    """
    idle: dict[str, Any] = {}
    for key in LATER:
        default = GPTConfig.model_fields[key].default
        idle[key] = default.model_dump(mode="json") if isinstance(default, Section) else default
    theirs, ours = {**idle, **saved}, model.model_dump(mode="json")
    if "name" in saved and (saved["name"] == "gptj") != model.parallel:  # gpt2 and gpt3 are one
        return "name", saved["name"], model.name
    for key, value in {**ours, **{k: v for k, v in idle.items() if k not in ours}}.items():
        if key in theirs and theirs[key] != value and key not in TRAINING_ONLY and "initializer" not in key:
            return key, theirs[key], value
    return None
