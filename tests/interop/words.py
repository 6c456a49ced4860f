"""The tokenizer that tests of exports share."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers


def train_words(*added: str) -> str:
    """A byte-level tokenizer.json of 300 entries, `<|endoftext|>` first, as preprocessing trains it, and added ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["aspirin lowers fever and the fever lowers appetite"] * 5, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in added])
    return tokenizer.to_str()
