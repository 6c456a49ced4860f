"""Learned soft-prompt vectors as further rows of the word embedding: ids from vocab_size on select them.

Their place in a sequence is therefore the data's choice, and whatever the model does to word embeddings (positions,
scale, norm, dropout) it does to them. The output head has no rows for them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import SoftPrompt
from modelzoo.draws import make_generator
from modelzoo.models.gpt import GPTModel


class SoftPromptEmbedding(nn.Embedding):
    """The word embedding with `soft_prompt` [tokens, hidden_size] behind its last row.

    Args:
        words: the embedding to extend; its weight is shared, not copied.
        config: how many vectors, and how they are initialised.
        seed: for random beginnings.
        word_ids: token ids of `config.words`, with init: words.
        rows: [tokens, hidden_size], with init: file; zeros until they are set.
    """

    def __init__(
        self,
        words: nn.Embedding,
        config: SoftPrompt,
        seed: int,
        word_ids: list[int] | None = None,
        rows: Tensor | None = None,
    ):
        super().__init__(words.num_embeddings, words.embedding_dim, _weight=words.weight)
        self.weight = words.weight  # the very parameter, which a tied head shares
        self.config, self.seed, self.word_ids, self.rows = config, seed, word_ids, rows
        self.soft_prompt = nn.Parameter(words.weight.new_empty(config.tokens, words.embedding_dim))

    def forward(self, input: Tensor) -> Tensor:
        """[b, t] ids below vocab_size + tokens to [b, t, hidden_size]."""
        ours = input >= self.num_embeddings
        words = F.embedding(input.masked_fill(ours, 0), self.weight)
        prompt = F.embedding((input - self.num_embeddings).clamp(min=0), self.soft_prompt)
        return torch.where(ours.unsqueeze(-1), prompt, words)  # selects, so neither gets the other's gradient

    @torch.no_grad()
    def draw(self) -> None:
        """Initialise the vectors from the word embedding as it now is (so again after weights are loaded).

        random: normal, with the standard deviation of the embedding's entries; words: the rows of `word_ids`;
        vocab_mean: the mean row; sample_vocab: different rows by chance; file: the rows given. Depends on nothing but
        weights and seed.
        """
        n, how = self.config.tokens, self.config.init
        generator = make_generator(self.seed, "soft_prompt")
        if how == "file":
            rows = torch.zeros(n, self.embedding_dim) if self.rows is None else self.rows
        elif how == "random":
            rows = torch.randn(n, self.embedding_dim, generator=generator).to(self.weight) * self.weight.std()
        elif how == "vocab_mean":
            rows = self.weight.mean(0, keepdim=True).expand(n, -1)
        else:
            chosen = self.word_ids or []
            if how == "sample_vocab":
                chosen = torch.randperm(self.num_embeddings, generator=generator)[:n].tolist()
            rows = self.weight[[chosen[i % len(chosen)] for i in range(n)]]
        self.soft_prompt.copy_(rows)


def attach(
    model: GPTModel,
    config: SoftPrompt,
    seed: int,
    word_ids: list[int] | None = None,
    rows: Tensor | None = None,
) -> SoftPromptEmbedding:
    """Give `model` a soft prompt, drawn from its weights (arguments as in SoftPromptEmbedding).

    Raises:
        UserError: words that are no words of the model, or more of them than vectors.
    """
    words = model.model.embedding_layer.word_embeddings
    traced = words.weight.device.type in ("meta", "lazy")  # has no values, and needs none
    if config.init == "words" and not traced:
        _check_words(config, words.num_embeddings, word_ids)
    prompted = SoftPromptEmbedding(words, config, config.seed if config.seed is not None else seed, word_ids, rows)
    model.model.embedding_layer.word_embeddings = prompted
    if not traced:
        prompted.draw()
    return prompted


def _check_words(config: SoftPrompt, vocab_size: int, ids: list[int] | None) -> None:
    at = "trainer.init.soft_prompt.words"
    if not ids:
        raise UserError(f"{at}: {config.words!r} holds no token")
    if len(ids) > config.tokens:
        raise UserError(
            f"{at}: {len(ids)} tokens, but there are {config.tokens} vectors; set soft_prompt.tokens: {len(ids)}"
        )
    if max(ids) >= vocab_size:
        raise UserError(
            f"{at}: token id {max(ids)} is outside model.vocab_size {vocab_size}; name the model's own tokenizer "
            "with trainer.init.tokenizer"
        )


def find_nearest(rows: Tensor, table: Tensor, k: int) -> tuple[list[list[tuple[float, int]]], ...]:
    """For each of `rows` [n, d] the `k` best (value, row of `table` [vocab, d]), by cosine and by dot product."""
    found = (F.normalize(rows) @ F.normalize(table).T, rows @ table.T)
    best = [x.topk(min(k, len(table))) for x in found]
    return tuple(
        [list(zip(v, i, strict=True)) for v, i in zip(b.values.tolist(), b.indices.tolist(), strict=True)] for b in best
    )
