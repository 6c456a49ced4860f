"""The GPT of MediSwift with Model Zoo's parameter names: embeddings, decoder layers, logits and the loss."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelzoo.config.sections.model import GPTConfig
from modelzoo.kernels.cross_entropy.linear import linear_cross_entropy
from modelzoo.kernels.limits import SCORED_ROWS
from modelzoo.models.cache import Cache
from modelzoo.models.decoder import DecoderLayer, compute, norm
from modelzoo.models.init import initialize


def alibi_slopes(heads: int) -> list[float]:
    """One slope a head (arXiv 2108.12409); heads that are no power of two borrow from the next one."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    extra = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return slopes + extra[: heads - power]


def rotary_rates(c: GPTConfig) -> Tensor:
    """The angle by which each pair of rotary dimensions turns from one position to the next, [rotary_width / 2].

    Llama 3's scaling turns slow pairs slower by the factor, leaves quick ones, and goes from one to the other between.
    """
    rates = c.rope_theta ** (-torch.arange(0, c.rotary_width, 2).float() / c.rotary_width)
    if c.pos_scaling_type == "linear":
        return rates
    waves, low, high = c.waves.original_max_position_embeddings, c.waves.low_freq_factor, c.waves.high_freq_factor
    quick = ((waves * rates / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return rates * (quick + (1 - quick) / c.pos_scaling_factor)


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
            x = x + self.fpe[position_ids].to(x.dtype)
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
            slopes = torch.tensor(alibi_slopes(c.num_heads)) / c.pos_stretch
            self.register_buffer("slopes", slopes, persistent=False)
        if c.position_embedding_type == "rotary":
            self.register_buffer("rope_rates", rotary_rates(c).repeat_interleave(2), persistent=False)

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
        x, rope, mask = self.enter(input_ids, position_ids, span, past)
        for layer in self.transformer_decoder.layers:
            if layer.recompute == "layer" and torch.is_grad_enabled():
                x = checkpoint(layer, x, rope, mask, use_reentrant=False)
            else:
                x = layer(x, rope, mask, past)
        if past is not None:
            past.finish(input_ids.shape[1])
        return self.ln_f(x)

    def enter(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        span: Tensor | None = None,
        past: Cache | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """What the first layer takes: [b, t, hidden_size], rotary cosines and sines, and the attention mask.

        Args as in `hidden`.
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
            angles = position_ids[:, None, :, None] / c.pos_stretch * self.rope_rates
            rope = angles.cos(), angles.sin()  # [1 or b, 1, t, rotary_width]
        return x, rope, self.mask(t, span, compute(x).dtype, past)

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

    def score(self, batch: Mapping[str, Tensor], rows: int = SCORED_ROWS) -> tuple[Tensor, Tensor, Tensor]:
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
            del logits  # before the next are made: else two are there at once
        return loss, right, (counts > 0).sum()


def loss_denominator(c: GPTConfig, loss_mask: Tensor) -> Tensor:
    """What a global batch's summed loss is divided by: its counting tokens, or batch_size / loss_weight.

    Args:
        loss_mask: [b, t] of the whole global batch.
    """
    if c.loss_scaling == "num_tokens":
        return loss_mask.sum(dtype=torch.float32).clamp(min=1.0)
    return torch.tensor(loss_mask.shape[0] / c.loss_weight, dtype=torch.float32, device=loss_mask.device)
