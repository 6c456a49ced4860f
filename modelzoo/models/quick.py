"""Decoder layers for a token at a time: the same functions in the same order, called without the modules around them.

What a module costs to call is more than what a small product costs, and a layer has sixteen of them. One description
cannot serve both: training must call the modules, whose hooks shard weights, watch inputs and pack blocks, casts for
autocast, drops and checkpoints on the way, and is compiled as it reads; here is none of that. Tests hold the one to the
other.
"""

from collections.abc import Callable

from torch import Tensor, nn

from modelzoo.kernels import few
from modelzoo.kernels.attention import attention
from modelzoo.models.cache import Cache
from modelzoo.models.decoder import DecoderLayer, FeedForwardLayer, rotate
from modelzoo.models.gpt import GPTModel


class QuickLayer(nn.Module):
    """A decoder layer, which takes few rows behind cached ones in fewer calls. All else goes to the layer itself."""

    def __init__(self, layer: DecoderLayer):
        super().__init__()
        self.layer = layer
        attn, (first, second) = layer.self_attn, layer.ffn.ffn
        assert isinstance(first, FeedForwardLayer) and isinstance(second, FeedForwardLayer)
        qkv = (attn.proj_q_dense_layer, attn.proj_k_dense_layer, attn.proj_v_dense_layer)
        gate: Callable[[Tensor], Tensor] | None = first.linear_layer_for_glu.forward if first.gated else None
        self.attends = attn.layer, attn.head_dim, attn.scale, layer.parallel
        self.calls = (
            layer.norm1.forward, [p.forward for p in qkv], attn.proj_output_dense_layer.forward,
            None if layer.norm3 is None else layer.norm3.forward,
            first.linear_layer.forward, gate, first.activation, second.linear_layer.forward,
        )  # fmt: skip

    recompute = "none"  # as of every layer: nothing is kept for a backward pass here

    def forward(self, x: Tensor, rope, mask, past: Cache | None = None) -> Tensor:
        """[b, t, hidden_size] to the same shape, as `DecoderLayer`'s in evaluation."""
        if past is None or not few.takes(x):
            return self.layer(x, rope, mask, past)
        b, t, _ = x.shape
        number, head_dim, scale, parallel = self.attends
        norm1, qkv, output, norm3, into, gate, activation, out = self.calls
        normed = norm1(x)
        q, k, v = (p(normed).view(b, t, -1, head_dim).transpose(1, 2) for p in qkv)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        k, v = past.layers[number].append(k, v, past)
        y = attention(q, k, v, mask, 0.0, scale)
        before, x = x, x + output(y.transpose(1, 2).reshape(b, t, -1))
        if norm3 is not None:
            normed = norm3(before if parallel else x)
        inner = into(normed)
        inner = activation(inner) if gate is None else inner * activation(gate(normed))
        return x + out(inner)


def use_quick(model: GPTModel) -> None:
    """Let a model that is only to write take few rows quickly; its linears as `kernels.few.use_few` leaves them."""
    few.use_few(model)
    layers = model.model.transformer_decoder.layers
    for i, layer in enumerate(layers):
        assert isinstance(layer, DecoderLayer)
        layers[i] = QuickLayer(layer)
