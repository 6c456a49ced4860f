"""The GPT of MediSwift: a pre-LN decoder with Model Zoo's parameter names. The whole model is in this file."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelzoo.config.model import GPTConfig
from modelzoo.kernels.attention import attention
from modelzoo.kernels.linear_cross_entropy import linear_cross_entropy
from modelzoo.models.cache import Cache
from modelzoo.models.init import initialize

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "squared_relu": lambda x: F.relu(x).square(),
    "linear": lambda x: x,
    "geglu": F.gelu,
    "reglu": F.relu,
    "swiglu": F.silu,
}


def norm(c: GPTConfig) -> nn.RMSNorm | nn.LayerNorm:
    """The norm that `norm_type` names, over [..., hidden_size]."""
    if c.norm_type == "rmsnorm":
        return nn.RMSNorm(c.hidden_size, eps=c.layer_norm_epsilon)
    return nn.LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon, bias=c.norm_type == "layernorm")


def compute(x: Tensor) -> Tensor:
    """`x` in autocast's dtype: cast once here, or every linear that reads it casts it again."""
    kind = x.device.type
    if kind == "lazy":  # traced for the CS-2, whose compiler casts
        return x
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the first dimensions of each head, pairs (0, 1), (2, 3), ... (arXiv 2104.09864)."""
    r = x[..., : cos.shape[-1]]
    pairs = torch.stack((-r[..., 1::2], r[..., ::2]), dim=-1).flatten(-2)
    return torch.cat(((r * cos + pairs * sin).to(x.dtype), x[..., cos.shape[-1] :]), dim=-1)


def alibi_slopes(heads: int) -> list[float]:
    """One slope a head (arXiv 2108.12409); heads that are no power of two borrow from the next one."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    extra = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return slopes + extra[: heads - power]


class Attention(nn.Module):
    """Multi-head self-attention. muP scales the dot product by 1 / d instead of 1 / sqrt(d) (arXiv 2203.03466)."""

    def __init__(self, c: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.heads, self.dropout = layer, c.num_heads, c.dropout_rate
        if c.attention_dropout_rate is not None:
            self.dropout = c.attention_dropout_rate
        self.proj_q_dense_layer = nn.Linear(c.hidden_size, c.inner_dim, bias=c.use_projection_bias_in_attention)
        self.proj_k_dense_layer = nn.Linear(c.hidden_size, c.inner_dim, bias=c.use_projection_bias_in_attention)
        self.proj_v_dense_layer = nn.Linear(c.hidden_size, c.inner_dim, bias=c.use_projection_bias_in_attention)
        self.proj_output_dense_layer = nn.Linear(c.inner_dim, c.hidden_size, bias=c.use_ffn_bias_in_attention)
        by_d = c.mup if c.scale_qk_dot_by_d is None else c.scale_qk_dot_by_d
        self.scale = c.attention_logits_alpha
        if c.attention_type == "scaled_dot_product":
            self.scale /= c.head_dim if by_d else math.sqrt(c.head_dim)
        if c.scale_qk_dot_by_layer_idx:
            self.scale /= layer + 1

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, past: Cache | None = None
    ) -> Tensor:
        """[b, t, hidden_size] to the same shape; `rope` and `mask` as `GPT.hidden` makes them."""
        b, t, _ = x.shape
        q, k, v = (
            proj(x).view(b, t, self.heads, -1).transpose(1, 2)  # [b, heads, t, head_dim]
            for proj in (self.proj_q_dense_layer, self.proj_k_dense_layer, self.proj_v_dense_layer)
        )
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if past is not None:
            k, v = past.layers[self.layer].append(k, v, past)
        y = attention(q, k, v, mask, self.dropout if self.training else 0.0, self.scale)
        return self.proj_output_dense_layer(y.transpose(1, 2).reshape(b, t, -1))


class FeedForwardLayer(nn.Module):
    """One linear of the feed-forward block, with a second one for gated activations (arXiv 2002.05202)."""

    def __init__(self, into: int, out: int, bias: bool, activation: str | None):
        super().__init__()
        self.linear_layer = nn.Linear(into, out, bias=bias)
        self.gated = activation is not None and activation.endswith("glu")
        if self.gated:
            self.linear_layer_for_glu = nn.Linear(into, out, bias=bias)
        self.activation = ACTIVATIONS[activation or "linear"]

    def forward(self, x: Tensor) -> Tensor:
        """[..., into] to [..., out]."""
        if self.gated:
            return self.linear_layer(x) * self.activation(self.linear_layer_for_glu(x))
        return self.activation(self.linear_layer(x))


class FeedForward(nn.Module):
    """hidden_size to filter_size and back, with the activation between."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.ffn = nn.ModuleList(
            [
                FeedForwardLayer(c.hidden_size, c.filter_size, c.use_ffn_bias, c.nonlinearity),
                FeedForwardLayer(c.filter_size, c.hidden_size, c.use_ffn_bias, None),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] to the same shape."""
        return self.ffn[1](self.ffn[0](x))


class DecoderLayer(nn.Module):
    """A pre-LN block: x + attention(norm1(x)), then x + ffn(norm3(x)). There is no norm2, as in Model Zoo.

    `recompute` is what backward computes again instead of keeping: none, layer or attention (arXiv 1604.06174).
    """

    recompute = "none"

    def __init__(self, c: GPTConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(c, layer)
        self.norm1 = norm(c)
        self.norm3 = norm(c)
        self.ffn = FeedForward(c)
        self.dropout = nn.Dropout(c.dropout_rate)

    def forward(self, x: Tensor, rope, mask, past: Cache | None = None) -> Tensor:
        """[b, t, hidden_size] to the same shape."""
        normed = compute(self.norm1(x))
        if self.recompute == "attention" and torch.is_grad_enabled():
            attended = checkpoint(self.self_attn, normed, rope, mask, use_reentrant=False)
        else:
            attended = self.self_attn(normed, rope, mask, past)
        x = x + self.dropout(attended)
        return x + self.dropout(self.ffn(compute(self.norm3(x))))


class PositionEmbedding(nn.Module):
    """Learned positions [rows, width], in a module of their own for Model Zoo's parameter name."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embed = nn.Embedding(rows, width)


class EmbeddingLayer(nn.Module):
    """Token embeddings plus learned or fixed positions. Rotary and ALiBi positions act in attention."""

    fpe: Tensor  # [max_position_embeddings, hidden_size], of fixed positions

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.kind, self.offset = c.position_embedding_type, c.position_embedding_offset
        self.word_embeddings = nn.Embedding(c.vocab_size, c.hidden_size)
        if self.kind == "learned":
            self.position_embeddings = PositionEmbedding(c.max_position_embeddings + self.offset, c.hidden_size)
        elif self.kind == "fixed":
            half = c.hidden_size // 2
            rates = torch.exp(torch.arange(half) * -(math.log(1e4) / max(half - 1, 1)))
            angles = torch.arange(c.max_position_embeddings).unsqueeze(1) * rates
            # sin and cos of one rate are neighbours, as tensor2tensor and the zoo lay them
            self.register_buffer("fpe", torch.stack((angles.sin(), angles.cos()), -1).flatten(1), persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[b, t] ids and [1 or b, t] positions to [b, t, hidden_size]."""
        x = self.word_embeddings(input_ids)
        if self.kind == "learned":
            x = x + self.position_embeddings.embed(position_ids + self.offset)
        elif self.kind == "fixed":
            x = x + self.fpe[position_ids]
        return x


class Decoder(nn.Module):
    """The list of layers. `GPT.hidden` runs them."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(c, i) for i in range(c.num_hidden_layers)])


class GPT(nn.Module):
    """Tokens to hidden states to logits."""

    slopes: Tensor  # [heads], of alibi
    rope_rates: Tensor  # [rotary_width]

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.config = c
        self.embedding_layer = EmbeddingLayer(c)
        if c.embedding_layer_norm:
            self.embedding_ln_f = norm(c)
        self.transformer_decoder = Decoder(c)
        self.ln_f = norm(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=c.use_bias_in_output)
        if c.share_embedding_weights:
            self.lm_head.weight = self.embedding_layer.word_embeddings.weight
        rate = c.dropout_rate if c.embedding_dropout_rate is None else c.embedding_dropout_rate
        self.drop_embd = nn.Dropout(rate)
        self.output_scale = 1.0
        if c.mup_base_hidden_size is not None:
            mult = c.hidden_size / c.mup_base_hidden_size
            self.output_scale = (c.output_logits_alpha or 1.0) / (mult if c.scale_output_logits_by_d else mult**0.5)
        if c.position_embedding_type == "alibi":
            slopes = torch.tensor(alibi_slopes(c.num_heads)) / c.pos_scaling_factor
            self.register_buffer("slopes", slopes, persistent=False)
        if c.position_embedding_type == "rotary":
            rates = c.rope_theta ** (-torch.arange(0, c.rotary_width, 2).float() / c.rotary_width)
            self.register_buffer("rope_rates", rates.repeat_interleave(2), persistent=False)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        span: Tensor | None = None,
        past: Cache | None = None,
    ) -> Tensor:
        """Final hidden states.

        Args:
            input_ids: [b, t] token ids.
            position_ids: [b, t] positions; default 0..t-1.
            span: [b, t] attention spans: token i is seen by tokens i..i+span[i]. Default: by all that follow.
            past: what came before (`make_cache`), for generation; it takes these tokens in. Positions follow from it.

        Returns:
            [b, t, hidden_size], after the last norm.
        """
        c, t = self.config, input_ids.shape[1]
        if past is not None:
            past.begin(t, input_ids.device)
            position_ids = past.positions.clamp(max=c.max_position_embeddings - 1)  # padding may go beyond the table
        elif position_ids is None:
            position_ids = torch.arange(t, device=input_ids.device).unsqueeze(0)
        x = self.embedding_layer(input_ids, position_ids)
        if c.embedding_layer_norm:
            x = self.embedding_ln_f(x)
        if c.embeddings_scale != 1.0:
            x = x * c.embeddings_scale
        x = self.drop_embd(x)
        rope = None
        if c.position_embedding_type == "rotary":
            angles = position_ids[:, None, :, None] / c.pos_scaling_factor * self.rope_rates
            rope = angles.cos(), angles.sin()  # [1 or b, 1, t, rotary_width]
        mask = self.mask(t, span, compute(x).dtype, past)
        for layer in self.transformer_decoder.layers:
            if layer.recompute == "layer" and torch.is_grad_enabled():
                x = checkpoint(layer, x, rope, mask, use_reentrant=False)
            else:
                x = layer(x, rope, mask, past)
        if past is not None:
            past.finish(t)
        return self.ln_f(x)

    def make_cache(self, rows: int) -> Cache:
        """An empty cache for `hidden`, of so many rows."""
        return Cache(rows, self.config.num_hidden_layers)

    def mask(self, t: int, span: Tensor | None, dtype: torch.dtype, past: Cache | None = None) -> Tensor | None:
        """Additive attention mask [1 or b, 1 or heads, t, t or past.end]; None: plainly causal (the fast path)."""
        alibi = self.config.position_embedding_type == "alibi"
        if span is None and not alibi and (past is None or past.sees_all(t)):
            return None
        device = self.ln_f.weight.device
        at = torch.arange(t, device=device).unsqueeze(0) if past is None else past.positions
        keys = torch.arange(t if past is None else past.end, device=device)
        back = (at.unsqueeze(-1) - keys).unsqueeze(1)  # [1 or b, 1, query, key]: how far the key lies behind
        seen = back >= 0
        if span is not None:
            seen = seen & (back <= span[:, None, None, :])
        bias = -self.slopes[None, :, None, None] * back if alibi else torch.zeros(seen.shape, device=device)
        return bias.masked_fill(~seen, float("-inf")).to(dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] to [..., vocab_size], float32."""
        return self.lm_head(compute(hidden)).float() * self.output_scale


class GPTModel(nn.Module):
    """The model with its loss. The wrapper gives parameters the zoo's `model.` prefix."""

    def __init__(self, c: GPTConfig, seed: int | None = None):
        super().__init__()
        self.model = GPT(c)
        if seed is not None:
            torch.manual_seed(seed)
            initialize(self, c)

    def forward(self, batch: Mapping[str, Tensor], denominator: Tensor | float) -> Tensor:
        """Loss of one (micro-)batch: the sum of its tokens' losses over `denominator`.

        The denominator belongs to the whole global batch (`loss_denominator`), so a batch cut into micro-batches gives
        the same loss and gradient as the whole.

        Args:
            batch: input_ids, labels, attention_mask (the loss mask), each [b, t]; VSL adds attention_span and
                position_ids. counted_rows, where given, saves the head a look at the mask.
            denominator: positive float or scalar tensor.
        """
        hidden = compute(self.model.hidden(batch["input_ids"], batch.get("position_ids"), batch.get("attention_span")))
        head = self.model.lm_head
        loss = linear_cross_entropy(
            hidden.flatten(0, 1),
            head.weight,
            batch["labels"].flatten().long(),
            batch["attention_mask"].flatten().float(),
            head.bias,
            self.model.output_scale,
            rows=batch.get("counted_rows"),
        )
        return loss / denominator

    def score(self, batch: Mapping[str, Tensor], rows: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
        """Measure a batch for validation, its logits `rows` at a time.

        Args:
            batch: as in `forward`.

        Returns:
            Summed loss in nats, correct next-token predictions, and tokens that count: scalars.
        """
        hidden = self.model.hidden(batch["input_ids"], batch.get("position_ids"), batch.get("attention_span")).flatten(
            0, 1
        )
        labels, counts = batch["labels"].flatten().long(), batch["attention_mask"].flatten().float()
        loss, right = torch.zeros((), device=hidden.device), torch.zeros((), device=hidden.device)
        for x, y, m in zip(hidden.split(rows), labels.split(rows), counts.split(rows), strict=True):
            logits = self.model.logits(x)
            loss += (F.cross_entropy(logits, y, reduction="none") * m).sum()
            right += ((logits.argmax(-1) == y) * (m > 0)).sum()
        return loss, right, (counts > 0).sum()


def loss_denominator(c: GPTConfig, loss_mask: Tensor) -> Tensor:
    """What a global batch's summed loss is divided by: its counting tokens, or batch_size / loss_weight.

    Args:
        loss_mask: [b, t] of the whole global batch.
    """
    if c.loss_scaling == "num_tokens":
        return loss_mask.sum(dtype=torch.float32).clamp(min=1.0)
    return torch.tensor(loss_mask.shape[0] / c.loss_weight, dtype=torch.float32, device=loss_mask.device)
