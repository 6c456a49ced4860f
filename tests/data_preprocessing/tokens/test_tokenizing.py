"""Tokenizers: ids are those of Hugging Face `tokenizers`, always, and text never becomes a control token."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import Job
from data_preprocessing.inputs import listing
from data_preprocessing.steps import extract
from data_preprocessing.tokens import tokenizing
from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import read_tokenizer


@pytest.fixture(scope="module")
def small(tokenizer):
    return tokenizing.Encoder(tokenizer.read_text(), str(tokenizer))


def agree(encoder, texts) -> None:
    flat, offsets = encoder.encode(texts)
    expected = [encoder.reference.encode(t, add_special_tokens=False).ids for t in texts]
    assert flat.tolist() == [i for ids in expected for i in ids]
    assert np.diff(offsets).tolist() == [len(ids) for ids in expected]


def test_the_fast_encoder_is_used(small):
    pytest.importorskip("gigatoken")
    assert small.engine == "gigatoken"


@settings(max_examples=500)
@given(st.lists(st.text(max_size=80), max_size=5))
def test_any_text(small, texts):
    agree(small, texts)


pieces = st.sampled_from(
    [
        "the",
        " the",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'s",
        "'S",
        "’ll",
        " 12",
        "3.5",
        "β",
        " µg",
        "é",
        "e\u0301",
        "\u00a0",
        "\u2009",
        "<|endoftext|>",
        "<fim_middle>",
        "—",
        "…",
        "中",
        "\U0001f9ec",
        "A",
        "aB",
        "_",
        "²",
        "½",
        "\u3000",
    ]
)


@settings(max_examples=500)
@given(st.lists(st.lists(pieces, max_size=20).map("".join), max_size=4))
def test_awkward_text(small, texts):
    agree(small, texts)


def test_text_never_becomes_a_special_token(small):
    special = {t: small.reference.token_to_id(t) for t in ("<|endoftext|>", *tokenizing.FIM_TOKENS)}
    flat, _ = small.encode([" ".join(special)])
    assert not set(flat.tolist()) & set(special.values())


@pytest.mark.realdata
def test_gpt2_ids_on_all_real_documents(shared_data, gpt2):
    encoder = tokenizing.Encoder(read_tokenizer(str(gpt2)), str(gpt2))
    assert encoder.size == 50257 and tokenizing.token_id(encoder.reference, "<|endoftext|>", "gpt2") == 50256
    count = 0
    for source, folders in (
        ("pubmed", ("pubmed_real", "pubmed_wrapped")),
        ("pmc", ("pmc_nxml/loose", "pmc_nxml/titipata")),
    ):
        job = Job(source=source, input=tuple(str(shared_data / f) for f in folders), output="unused")
        for file in listing.find(job.input, source):
            texts = [d.text for d in extract.documents(job, file["path"], file["name"]) if not d.deleted]
            encoder.check(texts)
            count += len(texts)
    assert count == 15_680 + 24


@pytest.mark.realdata
def test_gpt2_from_its_vocabulary_is_the_published_one(gpt2):
    """Merging by hand, straight from vocab.bpe, on words without surprises."""
    encoder = tokenizing.Encoder(read_tokenizer(str(gpt2)), "gpt2")
    vocab = json.loads((gpt2 / "encoder.json").read_text())
    ranks = {tuple(line.split()): k for k, line in enumerate((gpt2 / "vocab.bpe").read_text().splitlines()[1:]) if line}

    def by_hand(word: str) -> list[int]:
        parts = list(word.replace(" ", "Ġ"))
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), 10**9))
            if (parts[best], parts[best + 1]) not in ranks:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return [vocab[p] for p in parts]

    text = "Randomised controlled trials of angiotensin converting enzyme inhibitors in hypertensive patients"
    flat, _ = encoder.encode([text])
    assert flat.tolist() == [i for word in re.findall(" ?[A-Za-z]+", text) for i in by_hand(word)]


def test_training_is_repeatable_and_of_the_size_asked_for(corpus):
    texts = [f"number {k} of some trial with fever and cough {k * k}" for k in range(500)]
    first = tokenizing.train(iter([texts]), 400, ["<|endoftext|>"])
    assert first == tokenizing.train(iter([texts[:100], texts[100:]]), 400, ["<|endoftext|>"])
    encoder = tokenizing.Encoder(first, "t")
    assert encoder.size == 400 and encoder.reference.token_to_id("<|endoftext|>") == 0
    agree(encoder, [*texts, "µ β 中文 \U0001f9ec"])
    assert encoder.reference.decode(encoder.encode(["µ β 中文 \U0001f9ec"])[0].tolist()) == "µ β 中文 \U0001f9ec"


def test_other_kinds_of_tokenizer_go_through_the_reference():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    t = Tokenizer(models.WordLevel({"[UNK]": 0, "fever": 1, "and": 2}, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    encoder = tokenizing.Encoder(t.to_str(), "w")
    assert encoder.engine == "tokenizers" and encoder.encode(["Fever AND cough"])[0].tolist() == [1, 2, 0]


def test_a_fast_encoder_that_differs_is_found_out(small, monkeypatch):
    if small.fast is None:
        pytest.skip("gigatoken is not installed")
    monkeypatch.setattr(tokenizing, "_encode_fast", lambda fast, texts: (np.zeros(1, np.int32), np.array([0, 1])))
    with pytest.raises(UserError, match="differ"):
        small.check(["a b c"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither"),
        ({"tokenizer.json": "{"}, "not a Hugging Face"),
        ({"tokenizer.json": "{}"}, "not a Hugging Face"),
        ({"encoder.json": "{}", "vocab.bpe": "a b\n"}, "not a byte-level BPE"),
    ],
)
def test_bad_tokenizers(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_tokenizer(str(tmp_path))


def test_missing_tokens_and_files(small, tmp_path):
    with pytest.raises(UserError, match="no token '<eos>'"):
        tokenizing.token_id(small.reference, "<eos>", "t")
    with pytest.raises(UserError, match=r"gone.json"):
        read_tokenizer(str(tmp_path / "gone.json"))
