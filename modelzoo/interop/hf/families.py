"""Hugging Face architectures whose modules are ours under other names: one table of name pairs for each."""

from typing import NamedTuple

from modelzoo.names import HEAD, POSITIONS, WORDS

LAYER = "model.transformer_decoder.layers.{}."
QKV = tuple(f"self_attn.proj_{p}_dense_layer" for p in "qkv")
OUTPUT, FFN_IN, FFN_OUT = "self_attn.proj_output_dense_layer", "ffn.ffn.0.linear_layer", "ffn.ffn.1.linear_layer"
FFN_GATE = "ffn.ffn.0.linear_layer_for_glu"
LINEAR = (*QKV, OUTPUT, FFN_IN, FFN_GATE, FFN_OUT)
EVERYWHERE = ("norm", "ln_f", "self_attn", "ffn")


class Family(NamedTuple):
    """A Hugging Face architecture: module names (ours to theirs) and the layout of its tensors.

    packed: their module that holds queries, keys and values together: all queries first ("thirds"), or head by head
    ("heads"). biases: parts of our names of modules that always have biases there (absent ones of ours become zeros);
    None leaves it to the config. transposed: linears are [in, out]. half: rotary pairs (i, i + dim/2), ours (2i, 2i+1).
    buffers: ends of names that old checkpoints have and that hold no weight.
    """

    model_type: str
    architecture: str
    layer: str
    top: dict[str, str]
    within: dict[str, str]
    packed: tuple[str, str] | None = None
    biases: tuple[str, ...] | None = EVERYWHERE
    transposed: bool = False
    half: bool = False
    head: str = "lm_head"
    buffers: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """What the names begin with, but for the head's; models that were saved without head lack it."""
        return self.layer.partition(".")[0] + "."


_GPT2_LAYER = {"norm1": "ln_1", "norm3": "ln_2", OUTPUT: "attn.c_proj", FFN_IN: "mlp.c_fc", FFN_OUT: "mlp.c_proj"}
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    "transformer.h.{}.",
    {WORDS: "transformer.wte", POSITIONS: "transformer.wpe", "model.ln_f": "transformer.ln_f"},
    _GPT2_LAYER,
    packed=("attn.c_attn", "thirds"),
    transposed=True,
    buffers=(".attn.bias", ".attn.masked_bias"),
)
GPTJ = Family(
    "gptj",
    "GPTJForCausalLM",
    "transformer.h.{}.",
    {WORDS: "transformer.wte", "model.ln_f": "transformer.ln_f"},
    {
        "norm1": "ln_1",
        **{ours: f"attn.{p}_proj" for ours, p in zip(QKV, "qkv", strict=True)},
        **{OUTPUT: "attn.out_proj", FFN_IN: "mlp.fc_in", FFN_OUT: "mlp.fc_out"},
    },
    biases=("norm", "ln_f", "ffn", HEAD),
    buffers=(".attn.bias", ".attn.masked_bias", ".attn.embed_positions"),
)
_FFN = {FFN_IN: "mlp.dense_h_to_4h", FFN_OUT: "mlp.dense_4h_to_h"}
_NORMS = {"norm1": "input_layernorm", "norm3": "post_attention_layernorm"}
NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    "gpt_neox.layers.{}.",
    {WORDS: "gpt_neox.embed_in", "model.ln_f": "gpt_neox.final_layer_norm"},
    {**_NORMS, OUTPUT: "attention.dense", **_FFN},
    packed=("attention.query_key_value", "heads"),
    half=True,
    head="embed_out",
    buffers=(".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"),
)
LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "model.layers.{}.",
    {WORDS: "model.embed_tokens", "model.ln_f": "model.norm"},
    {
        **_NORMS,
        **{ours: f"self_attn.{p}_proj" for ours, p in zip(QKV, "qkv", strict=True)},
        **{OUTPUT: "self_attn.o_proj", FFN_IN: "mlp.up_proj", FFN_GATE: "mlp.gate_proj", FFN_OUT: "mlp.down_proj"},
    },
    biases=None,
    half=True,
    buffers=(".self_attn.rotary_emb.inv_freq",),
)
BLOOM = Family(
    "bloom",
    "BloomForCausalLM",
    "transformer.h.{}.",
    {
        WORDS: "transformer.word_embeddings",
        "model.embedding_ln_f": "transformer.word_embeddings_layernorm",
        "model.ln_f": "transformer.ln_f",
    },
    {**_NORMS, OUTPUT: "self_attention.dense", **_FFN},
    packed=("self_attention.query_key_value", "heads"),
)
MPT = Family(
    "mpt",
    "MptForCausalLM",
    "transformer.blocks.{}.",
    {WORDS: "transformer.wte", "model.ln_f": "transformer.norm_f"},
    {"norm1": "norm_1", "norm3": "norm_2", OUTPUT: "attn.out_proj", FFN_IN: "ffn.up_proj", FFN_OUT: "ffn.down_proj"},
    packed=("attn.Wqkv", "thirds"),
    biases=(),
)
