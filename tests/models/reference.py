"""A GPT in NumPy float64, written from the papers and Model Zoo's description, sharing nothing with the model."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


PLAIN = {
    "gelu": gelu,
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "linear": lambda x: x,
}
GATED = {"geglu": gelu, "reglu": PLAIN["relu"], "swiglu": PLAIN["silu"]}


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes (arXiv 2108.12409, footnote 8 and its reference code), by recursion."""
    if heads & (heads - 1) == 0:
        start = 2.0 ** (-(2.0 ** -(math.log2(heads) - 3)))
        return [start * start**i for i in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return slopes(below) + slopes(2 * below)[::2][: heads - below]


def llama3(rate: float, factor: float, low: float, high: float, original: int) -> float:
    """Llama 3.1's change of a rate of rotation, from its reference code."""
    wave = 2 * math.pi / rate
    if wave < original / high:
        return rate
    if wave > original / low:
        return rate / factor
    smooth = (original / wave - low) / (high - low)
    return (1 - smooth) * rate / factor + smooth * rate


def rotary(x: np.ndarray, positions: np.ndarray, width: int, c) -> np.ndarray:
    """x [t, head_dim]: dimensions 2i, 2i+1 below `width` as a complex number, turned by position theta^(-2i/width)."""
    out = x.copy()
    z = x[:, :width:2] + 1j * x[:, 1:width:2]
    rates = c.rope_theta ** (-np.arange(0, width, 2) / width)
    if c.pos_scaling_type == "llama3":
        more = c.pos_scaling_extra_args
        limits = (more.low_freq_factor, more.high_freq_factor, more.original_max_position_embeddings)
        rates = np.array([llama3(r, c.pos_scaling_factor, *limits) for r in rates])
    else:
        rates = rates / c.pos_scaling_factor
    angle = positions[:, None] * rates
    z = z * np.exp(1j * angle)
    out[:, :width:2], out[:, 1:width:2] = z.real, z.imag
    return out


def sinusoids(position: int, width: int) -> np.ndarray:
    """sin and cos of the same rate side by side; rates fall geometrically from 1 to 1e-4 (tensor2tensor)."""
    n = width // 2
    rates = [1e4 ** (-i / (n - 1)) for i in range(n)]
    return np.array([f(position * r) for r in rates for f in (math.sin, math.cos)])


def normed(c, w, name, x):
    weight = w[f"{name}.weight"]
    if c.norm_type == "rmsnorm":
        return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + c.layer_norm_epsilon)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.layer_norm_epsilon)
    return weight * y + (w[f"{name}.bias"] if c.norm_type == "layernorm" else 0)


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def attention(c, w, name, x, positions, seen, layer):
    d = (c.attention_inner_dim or c.hidden_size) // c.num_heads
    q, k, v = (linear(w, f"{name}.proj_{p}_dense_layer", x) for p in "qkv")
    share = q.shape[1] // k.shape[1]  # heads of queries next to each other that share keys and values
    out = np.zeros_like(q)
    for h in range(c.num_heads):
        part = slice(h * d, (h + 1) * d)
        shared = slice(h // share * d, (h // share + 1) * d)
        qh, kh = q[:, part], k[:, shared]
        if c.position_embedding_type == "rotary":
            width = c.rotary_dim or int(c.hidden_size // c.num_heads * 0.25)
            qh, kh = (rotary(z, positions, width, c) for z in (qh, kh))
        by_d = c.scale_qk_dot_by_d if c.scale_qk_dot_by_d is not None else c.mup_base_hidden_size is not None
        scores = c.attention_logits_alpha * qh @ kh.T
        if c.attention_type == "scaled_dot_product":
            scores = scores / (d if by_d else math.sqrt(d))
        if c.scale_qk_dot_by_layer_idx:
            scores = scores / (layer + 1)
        if c.position_embedding_type == "alibi":
            behind = np.abs(np.arange(len(x))[:, None] - np.arange(len(x))[None, :])
            scores = scores - slopes(c.num_heads)[h] / c.pos_scaling_factor * behind
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
    return linear(w, f"{name}.proj_output_dense_layer", out)


def logits(c, w, ids, positions=None, spans=None) -> np.ndarray:
    """[t] token ids to [t, vocab] logits of config `c` with weights `w` by name."""
    t = len(ids)
    positions = np.arange(t) if positions is None else positions
    seen = np.tril(np.ones((t, t), bool))
    if spans is not None:
        seen &= np.array([[j <= i <= j + spans[j] for j in range(t)] for i in range(t)])
    x = w["model.embedding_layer.word_embeddings.weight"][ids]
    if c.position_embedding_type == "learned":
        x = x + w["model.embedding_layer.position_embeddings.embed.weight"][positions + c.position_embedding_offset]
    if c.position_embedding_type == "fixed":
        x = x + np.array([sinusoids(p, c.hidden_size) for p in positions])
    if c.embedding_layer_norm:
        x = normed(c, w, "model.embedding_ln_f", x)
    x = x * c.embeddings_scale
    for i in range(c.num_hidden_layers):
        name = f"model.transformer_decoder.layers.{i}"
        y = normed(c, w, f"{name}.norm1", x)
        before, x = x, x + attention(c, w, f"{name}.self_attn", y, positions, seen, i)
        if c.name != "gptj":
            y = normed(c, w, f"{name}.norm3", x)
        elif c.use_untied_layer_norm:  # GPT-NeoX; a GPT-J has one norm
            y = normed(c, w, f"{name}.norm3", before)
        inner = linear(w, f"{name}.ffn.ffn.0.linear_layer", y)
        if c.nonlinearity in GATED:
            inner = inner * GATED[c.nonlinearity](linear(w, f"{name}.ffn.ffn.0.linear_layer_for_glu", y))
        else:
            inner = PLAIN[c.nonlinearity](inner)
        x = x + linear(w, f"{name}.ffn.ffn.1.linear_layer", inner)
    head = "model.embedding_layer.word_embeddings" if c.share_embedding_weights else "model.lm_head"
    out = normed(c, w, "model.ln_f", x) @ w[f"{head}.weight"].T + w.get("model.lm_head.bias", 0)
    if c.mup_base_hidden_size:
        width = c.hidden_size / c.mup_base_hidden_size
        out = out * (c.output_logits_alpha or 1) / (width if c.scale_output_logits_by_d else math.sqrt(width))
    return out
