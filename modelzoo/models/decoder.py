"""One pre-LN decoder layer with Model Zoo's parameter names: its norms, attention and feed-forward block."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelzoo.config.sections.model import GPTConfig
from modelzoo.kernels.attention import attention
from modelzoo.models.cache import Cache

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


class Attention(nn.Module):
    """Multi-head self-attention, in which heads of queries may share those of keys and values (arXiv 2305.13245).

    muP scales the dot product by 1 / d instead of 1 / sqrt(d) (arXiv 2203.03466).
    """

    def __init__(self, c: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, c.head_dim, c.dropout_rate
        if c.attention_dropout_rate is not None:
            self.dropout = c.attention_dropout_rate
        self.proj_q_dense_layer = nn.Linear(c.hidden_size, c.inner_dim, bias=c.use_projection_bias_in_attention)
        self.proj_k_dense_layer = nn.Linear(c.hidden_size, c.kv_dim, bias=c.use_projection_bias_in_attention)
        self.proj_v_dense_layer = nn.Linear(c.hidden_size, c.kv_dim, bias=c.use_projection_bias_in_attention)
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
            proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # [b, heads or kv_heads, t, head_dim]
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

    In parallel (GPT-NeoX) it is x + attention(norm1(x)) + ffn(norm3(x)); with one norm (GPT-J) norm3 is norm1.
    `recompute` is what backward computes again instead of keeping: none, layer or attention (arXiv 1604.06174).
    """

    recompute = "none"

    def __init__(self, c: GPTConfig, layer: int):
        super().__init__()
        self.parallel = c.parallel
        self.self_attn = Attention(c, layer)
        self.norm1 = norm(c)
        self.norm3 = None if c.tied_norms else norm(c)
        self.ffn = FeedForward(c)
        self.dropout = nn.Dropout(c.dropout_rate)

    def forward(self, x: Tensor, rope, mask, past: Cache | None = None) -> Tensor:
        """[b, t, hidden_size] to the same shape."""
        normed = compute(self.norm1(x))
        if self.recompute == "attention" and torch.is_grad_enabled():
            attended = checkpoint(self.self_attn, normed, rope, mask, use_reentrant=False)
        else:
            attended = self.self_attn(normed, rope, mask, past)
        before, x = x, x + self.dropout(attended)
        if self.norm3 is not None:
            normed = compute(self.norm3(before if self.parallel else x))
        return x + self.dropout(self.ffn(normed))
