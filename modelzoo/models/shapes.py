"""Names, shapes and kinds of every parameter, from the config alone. No torch: `plan` counts with it.

The names are Model Zoo's, so its `param_filter` globs and its checkpoints fit. A test holds this table to the model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import LoRA
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.trainer import Init
from modelzoo.config.values.patterns import check_match, matches
from modelzoo.names import HEAD, HEAD_WEIGHT, LORA_A, LORA_B, POSITIONS, SOFT_PROMPT, WORDS_WEIGHT

GLU = ("geglu", "reglu", "swiglu")


class Shape(NamedTuple):
    """A parameter: its shape and its kind: embedding, norm, linear, bias or head; prompt or adapter."""

    size: tuple[int, ...]
    kind: str

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.size)


def list_parameters(config: GPTConfig) -> dict[str, Shape]:
    """Every parameter of the model by name, in the model's own order. A tied head shares the embedding's entry."""
    d, inner, ffn = config.hidden_size, config.inner_dim, config.filter_size
    table: dict[str, Shape] = {}

    def linear(name: str, out: int, into: int, bias: bool, kind: str = "linear") -> None:
        table[f"{name}.weight"] = Shape((out, into), kind)
        if bias:
            table[f"{name}.bias"] = Shape((out,), "bias")

    def norm(name: str) -> None:
        table[f"{name}.weight"] = Shape((d,), "norm")
        if config.norm_type == "layernorm":
            table[f"{name}.bias"] = Shape((d,), "norm")

    table[WORDS_WEIGHT] = Shape((config.vocab_size, d), "embedding")
    if config.position_embedding_type == "learned":
        rows = config.max_position_embeddings + config.position_embedding_offset
        table[f"{POSITIONS}.weight"] = Shape((rows, d), "embedding")
    if config.embedding_layer_norm:
        norm("model.embedding_ln_f")
    for i in range(config.num_hidden_layers):
        layer = f"model.transformer_decoder.layers.{i}"
        for proj, out in (("q", inner), ("k", config.kv_dim), ("v", config.kv_dim)):
            linear(f"{layer}.self_attn.proj_{proj}_dense_layer", out, d, config.use_projection_bias_in_attention)
        linear(f"{layer}.self_attn.proj_output_dense_layer", d, inner, config.use_ffn_bias_in_attention)
        norm(f"{layer}.norm1")
        if not config.tied_norms:
            norm(f"{layer}.norm3")
        linear(f"{layer}.ffn.ffn.0.linear_layer", ffn, d, config.use_ffn_bias)
        if config.nonlinearity in GLU:
            linear(f"{layer}.ffn.ffn.0.linear_layer_for_glu", ffn, d, config.use_ffn_bias)
        linear(f"{layer}.ffn.ffn.1.linear_layer", d, ffn, config.use_ffn_bias)
    norm("model.ln_f")
    if not config.share_embedding_weights:
        table[HEAD_WEIGHT] = Shape((config.vocab_size, d), "head")
    if config.use_bias_in_output:
        table[f"{HEAD}.bias"] = Shape((config.vocab_size,), "bias")
    return table


def check_weights(sizes: Mapping[str, Sequence[int]], config: GPTConfig, path: str) -> None:
    """Refuse weights that are not those of the model: one that is missing, or of another shape.

    Args:
        sizes: the shapes of the weights by name; those that the model has not are left to the caller.
        path: where they and the config are.

    Raises:
        UserError: names the first.
    """
    for name, shape in list_parameters(config).items():
        found = tuple(sizes[name]) if name in sizes else None
        if found != shape.size:
            has = "nothing" if found is None else list(found)
            raise UserError(f"{path}: its config asks for {name} {list(shape.size)}, the weights hold {has}")


def list_with_adapters(init: Init) -> dict[str, Shape]:
    """`list_parameters` of the config's model with its soft prompt and LoRA, in the model's own order."""
    table = list_parameters(init.model)
    if init.lora is not None:
        chosen = find_lora_targets(init.model, init.lora)
        bare, table = table, {}
        for name, shape in bare.items():
            table[name] = shape
            module = name.rpartition(".")[0]
            if module in chosen and (name.endswith(".bias") or f"{module}.bias" not in bare):  # after its last one
                out, into = chosen[module]
                table[module + LORA_A] = Shape((init.lora.r, into), "adapter")
                table[module + LORA_B] = Shape((out, init.lora.r), "adapter")
    if init.soft_prompt is not None:
        first, *rest = table.items()
        prompt = Shape((init.soft_prompt.tokens, init.model.hidden_size), "prompt")
        table = dict([first, (SOFT_PROMPT, prompt), *rest])
    return table


def trains(init: Init, kind: str) -> bool:
    """Whether parameters of `kind` train."""
    return not init.base_frozen or kind in ("prompt", "adapter")


def frozen(init: Init) -> frozenset[str]:
    """Names of the parameters that do not train."""
    return frozenset(n for n, s in list_with_adapters(init).items() if not trains(init, s.kind))


def find_lora_targets(config: GPTConfig, lora: LoRA) -> dict[str, tuple[int, int]]:
    """The linear modules that `target_modules` names, with their (out, in).

    Raises:
        UserError: a pattern that matches none.
    """
    linear = {
        n.removesuffix(".weight"): (s.size[0], s.size[1])
        for n, s in list_parameters(config).items()
        if s.kind == "linear"
    }
    check_match("trainer.init.lora.target_modules", lora.target_modules, linear, "linear module")
    return {n: size for n, size in linear.items() if any(matches(n, p) for p in lora.target_modules)}
