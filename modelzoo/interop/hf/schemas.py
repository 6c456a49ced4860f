"""What is read of a config.json: keys and types, the defaults of transformers, and which key of ours each one is.

null means the default, as for transformers.
"""

from typing import Annotated, Any

from pydantic import Field

from modelzoo.records import Record

Size = Annotated[int, Field(gt=0, le=2**20)]
Layers = Annotated[int, Field(gt=0, le=2**12)]


class ModelConfig(Record):
    """What is read of every config.json."""

    model_type: str
    vocab_size: Size | None = None
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    quantization_config: dict[str, Any] | None = None


class GPT2Config(ModelConfig):
    """GPT-2's and GPT-J's."""

    n_positions: Size | None = None
    n_embd: Size | None = None
    n_layer: Layers | None = None
    n_head: Size | None = None
    n_inner: Size | None = None
    rotary_dim: Size | None = None  # of GPT-J
    activation_function: str | None = None
    resid_pdrop: float | None = None
    embd_pdrop: float | None = None
    attn_pdrop: float | None = None
    layer_norm_epsilon: float | None = None
    scale_attn_by_inverse_layer_idx: bool | None = None
    scale_attn_weights: bool | None = None
    add_cross_attention: bool | None = None


class Rope(Record):
    """`rope_scaling` of transformers 4, `rope_parameters` of 5."""

    rope_type: str | None = None
    type: str | None = None  # its older name
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: Size | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None


class LaterConfig(ModelConfig):
    """What later architectures share."""

    hidden_size: Size | None = None
    num_hidden_layers: Layers | None = None
    num_attention_heads: Size | None = None
    intermediate_size: Size | None = None
    hidden_act: str | None = None
    max_position_embeddings: Size | None = None
    attention_dropout: float | None = None
    attention_bias: bool | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None


class NeoXConfig(LaterConfig):
    layer_norm_eps: float | None = None
    hidden_dropout: float | None = None
    use_parallel_residual: bool | None = None
    rotary_pct: float | None = None
    rotary_emb_base: float | None = None


class LlamaConfig(LaterConfig):
    """Llama's, Mistral's and Qwen2's."""

    rms_norm_eps: float | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    mlp_bias: bool | None = None
    rope_theta: float | None = None
    sliding_window: Size | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None


# Keys of theirs and ours, of equal meaning.
GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_heads",
    "n_inner": "filter_size",
    "rotary_dim": "rotary_dim",
    "activation_function": "nonlinearity",
    "resid_pdrop": "dropout_rate",
    "embd_pdrop": "embd_pdrop",
    "attn_pdrop": "attention_dropout_rate",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "share_embedding_weights",
    "scale_attn_by_inverse_layer_idx": "scale_qk_dot_by_layer_idx",
}
LATER_KEYS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "filter_size",
    "hidden_act": "nonlinearity",
    "hidden_dropout": "dropout_rate",
    "attention_dropout": "attention_dropout_rate",
    "layer_norm_eps": "layer_norm_epsilon",
    "rms_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "share_embedding_weights",
}
# What transformers takes where a config.json has no value.
GPT2_DEFAULTS = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "resid_pdrop": 0.1,
    "embd_pdrop": 0.1, "attn_pdrop": 0.1, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}  # fmt: skip
GPTJ_DEFAULTS = {
    "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
NEOX_DEFAULTS = {
    "vocab_size": 50432, "max_position_embeddings": 2048, "hidden_size": 6144, "num_hidden_layers": 44,
    "num_attention_heads": 64, "intermediate_size": 24576, "hidden_act": "gelu", "rotary_pct": 0.25,
    "rotary_emb_base": 1e4, "hidden_dropout": 0.0, "attention_dropout": 0.0, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False, "use_parallel_residual": True, "attention_bias": True,
}  # fmt: skip
LLAMA_DEFAULTS = {
    "vocab_size": 32000, "max_position_embeddings": 2048, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 11008, "hidden_act": "silu", "rope_theta": 1e4,
    "attention_dropout": 0.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
LLAMAS = {
    "llama": LLAMA_DEFAULTS,
    "mistral": {
        **LLAMA_DEFAULTS, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    },
    "qwen2": {
        **LLAMA_DEFAULTS, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
    },
}  # fmt: skip
ACTIVATIONS = {
    "relu2": "squared_relu", "swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
}  # fmt: skip
GATES = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "relu": "reglu"}
KINDS = ("gpt2", "gptj", "gpt_neox", *LLAMAS)
BIOGPT = "biogpt"  # which `biogpt` reads
