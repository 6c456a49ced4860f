"""Packing: what goes in comes out, once, in order, with labels shifted by one."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.tokens import pack

EOS = 0
documents = st.lists(st.lists(st.integers(1, 99), min_size=0, max_size=40), max_size=12)


def flatten(docs):
    lengths = [len(d) for d in docs]
    return np.array([t for d in docs for t in d], np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def in_batches(packer, docs, cut):
    """Feed the documents in two calls and finish."""
    parts = [packer.add(*flatten(docs[:cut])), packer.add(*flatten(docs[cut:])), packer.finish()]
    return np.concatenate(parts)


def check_stream(docs, msl, cut, tail):
    examples = in_batches(pack.StreamPacker(msl, EOS, EOS, tail), docs, cut)
    stream = [t for d in docs for t in [*d, EOS]]
    # The zoo's rule, written out: windows of msl + 1 with stride msl.
    expected = [stream[s : s + msl + 1] for s in range(0, max(len(stream) - 1, 0), msl)]
    if tail == "drop":
        expected = [w for w in expected if len(w) == msl + 1]
    assert examples.shape == (len(expected), 3, msl) and examples.dtype == np.int32
    for example, window in zip(examples, expected, strict=True):
        m = len(window) - 1
        assert example[0, :m].tolist() == window[:-1] and example[2, :m].tolist() == window[1:]
        assert example[1].tolist() == [1] * m + [0] * (msl - m)
        assert (example[0, m:] == EOS).all() and (example[2, m:] == EOS).all()


@settings(max_examples=500)
@given(documents, st.integers(2, 17), st.integers(0, 12), st.sampled_from(["pad", "drop"]))
def test_stream_round_trip(docs, msl, cut, tail):
    check_stream(docs, msl, cut, tail)


def test_ten_thousand_stream_round_trips():
    rng = random.Random(0)
    for _ in range(10_000):
        docs = [[rng.randint(1, 99) for _ in range(rng.randint(0, 20))] for _ in range(rng.randint(0, 8))]
        check_stream(docs, rng.randint(2, 17), rng.randint(0, 8), rng.choice(["pad", "drop"]))


@settings(max_examples=500)
@given(documents, st.integers(2, 17), st.integers(0, 12))
def test_vsl_keeps_documents_whole_and_apart(docs, msl, cut):
    examples = in_batches(pack.VslPacker(msl, EOS, EOS, "pad"), docs, cut)
    found = []
    for ids, mask, labels, span, position in examples:
        at = 0
        while at < msl and mask[at]:
            n = span[at] + 1
            assert position[at : at + n].tolist() == list(range(n)) and span[at : at + n].tolist() == list(
                range(n - 1, -1, -1)
            )
            assert mask[at : at + n].all() and (labels[at : at + n - 1] == ids[at + 1 : at + n]).all()
            found.append((ids[at : at + n].tolist(), int(labels[at + n - 1])))
            at += n
        assert not mask[at:].any() and not span[at:].any() and not position[at:].any()
    pieces = []
    for d in docs:
        stream = [*d, EOS]
        pieces += [
            (stream[s : s + msl][: len(stream) - 1 - s], stream[min(s + msl, len(stream) - 1)])
            for s in range(0, len(d), msl)
        ]
    assert sorted(found) == sorted(pieces)


@settings(max_examples=500)
@given(
    st.lists(st.integers(1, 99), max_size=20),
    st.lists(st.integers(1, 99), min_size=1, max_size=20),
    st.integers(4, 24),
    st.sampled_from(["drop", "truncate"]),
)
def test_prompt_completion_learns_the_completion_alone(prompt, completion, msl, too_long):
    example = pack.prompt_completion(
        np.array(prompt, np.int32), np.array(completion, np.int32), msl, EOS, EOS, too_long
    )
    fits = len(prompt) + len(completion) <= msl
    if not fits and (too_long == "drop" or len(completion) + 1 > msl):
        # A completion needs at least one token of prompt before it when the left is cut.
        assert example is None
        return
    assert example is not None
    learnt = example[2][example[1] == 1].tolist()
    assert learnt == ([*completion, EOS] if prompt or not fits else [*completion, EOS][1:])
    stream = [*prompt, *completion, EOS]
    stream = stream[max(0, len(stream) - msl - 1) :]
    assert (
        example[0, : len(stream) - 1].tolist() == stream[:-1] and example[2, : len(stream) - 1].tolist() == stream[1:]
    )


@settings(max_examples=500)
@given(st.text(min_size=0, max_size=60), st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4), st.floats(0, 1))
def test_fim_cuts_lose_no_text(text, u, rate):
    cut = pack.fim_segments(text, u, rate, 0.5)
    if u[0] >= rate or len(text) < 3:
        assert cut is None
        return
    order, prefix, middle, suffix = cut
    assert prefix + middle + suffix == text and order == ("spm" if u[3] < 0.5 else "psm")


@pytest.mark.parametrize(
    ("order", "expected"), [("psm", [91, 1, 2, 93, 5, 92, 3, 4]), ("spm", [91, 93, 5, 92, 1, 2, 3, 4])]
)
def test_fim_orders(order, expected):
    ids = pack.fim_join(order, np.array([1, 2]), np.array([3, 4]), np.array([5]), (91, 92, 93))
    assert ids.tolist() == expected
