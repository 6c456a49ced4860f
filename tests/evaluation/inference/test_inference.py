"""Likelihoods against whole forward passes; constrained generation stays within its grammar and reads back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.inference.decoding import decode_greedily, generate_answers
from modelzoo.evaluation.inference.grammar import Answer
from modelzoo.evaluation.inference.likelihoods import compute_likelihoods, score_continuations
from modelzoo.evaluation.prompts.encode import encode_pieces, encode_prompt
from modelzoo.evaluation.scores.evaluate import evaluate_task
from modelzoo.models.gpt import GPTModel
from tests.support import local, tiny
from tests.tasks_at_hand import MULTI, NER, SINGLE, make

BACKEND = local(enabled=False)


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel(tiny(vocab_size=320, max_position_embeddings=128), seed=0).eval()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {
        "single": make(folder / "s", "classification", SINGLE, {}),
        "multi": make(folder / "m", "multilabel", MULTI, {}),
        "ner": make(folder / "n", "ner", NER, {}),
        "bare": make(folder / "b", "multilabel", MULTI.replace(" the type is {label}.", "{label}"), {}),
    }


def log_p(model, ids: list[int], begin: int) -> float:
    """Sum of log p of ids[begin:], by one whole forward pass."""
    with torch.no_grad():
        logits = model.model.logits(model.model.hidden(torch.tensor([ids])))[0].double().log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(begin, len(ids)))


ids = st.lists(st.integers(0, 319), min_size=1, max_size=9)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(ids, st.lists(ids, min_size=2, max_size=4)), min_size=1, max_size=4),
    ids,
    st.integers(1, 5),
)
def test_likelihoods_are_those_of_whole_passes(model, examples, shared, batch_size):
    """Up to what all answers share, which is the same for each."""
    prompts = [p for p, _ in examples]
    answers = [[shared + a for a in choices] for _, choices in examples]
    found = compute_likelihoods(model, BACKEND, prompts, answers, batch_size)
    for prompt, choices, got in zip(prompts, answers, found, strict=True):
        expected = np.array([log_p(model, prompt + a, len(prompt)) for a in choices])
        assert got.log_p - got.log_p[0] == pytest.approx(expected - expected[0], abs=1e-4)
        common = {len(a) - n for a, n in zip(choices, got.tokens, strict=True)}
        assert len(common) == 1 and common.pop() >= len(shared)  # hypothesis may add to what is shared


def test_continuations_and_greedy_ones(model):
    pairs = [([1, 2, 3], [4, 5]), ([9], [7]), ([3, 1], [])]
    for batch_size in (1, 8):
        found = score_continuations(model, BACKEND, pairs, batch_size)
        for (context, continuation), (score, _) in zip(pairs, found, strict=True):
            assert score == pytest.approx(log_p(model, context + continuation, len(context)), abs=1e-4)
    (best,) = decode_greedily(model, BACKEND, [[1, 2, 3]], 4, lambda x: False)
    assert score_continuations(model, BACKEND, [([1, 2, 3], best)], 1)[0][1]
    assert not score_continuations(model, BACKEND, [([1, 2, 3], [*best[:-1], (best[-1] + 1) % 320])], 1)[0][1]


@pytest.mark.parametrize("fields", [{}, {"position_embedding_type": "alibi"}, {"position_embedding_type": "rotary"}])
def test_greedy_texts_are_those_of_whole_passes(fields):
    """Prompts of unlike lengths, texts that end at unlike times, up to the last position."""
    model = GPTModel(tiny(**fields, rotary_dim=4), seed=0).eval()
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    ends = lambda ids: ids[-1] % 5 == 0
    found = decode_greedily(model, BACKEND, prompts, 7, ends)
    for prompt, written in zip(prompts, found, strict=True):
        again: list[int] = []
        while len(again) < 7 and not (again and ends(again)):
            with torch.no_grad():
                logits = model.model.logits(model.model.hidden(torch.tensor([[*prompt, *again]])))[0, -1]
            again.append(int(logits.argmax()))
        assert again == written


GOLDS = {
    "single": st.sampled_from(["yes", "no", "maybe", "not"]),
    "multi": st.sets(st.sampled_from("ABC")).map(lambda s: tuple(sorted(s))),
    "bare": st.sets(st.sampled_from("ABC")).map(lambda s: tuple(sorted(s))),
    "ner": st.lists(st.sampled_from(["O", "B-D", "I-D", "B-C", "I-C"]), min_size=3, max_size=3)
    .filter(lambda t: all(not y.startswith("I") or x[2:] == y[2:] for x, y in zip(["O", *t], t, strict=False)))
    .map(tuple),
}


@pytest.mark.parametrize("name", GOLDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_every_gold_answer_can_be_written_and_reads_back(tasks, tokenizer, name, data):
    """The grammar takes the very tokens that training shows, and gives the labels back."""
    task = tasks[name]
    e = Example("1", {"text": "aspirin lowers fever"}, data.draw(GOLDS[name]))
    answer = Answer.begin(task, e, tokenizer)
    for token in encode_pieces(task.pieces(e), tokenizer):
        assert token in answer.allowed()
        answer.write(token)
    assert task.answer(answer.labels) == e.gold
    assert len(answer.ids) - 1 <= max(len(encode_pieces(p, tokenizer)) - 1 for p in task.longest(e))


@pytest.mark.parametrize("name", GOLDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whatever_is_written_is_an_answer(tasks, tokenizer, name, data):
    task, e = tasks[name], Example("1", {"text": "aspirin lowers fever"}, None)
    answer = Answer.begin(task, e, tokenizer)
    while answer.labels is None:
        answer.write(data.draw(st.sampled_from(answer.allowed())))
    found = task.answer(answer.labels)
    assert tokenizer.decode(answer.ids) == task.target(e._replace(gold=found)) + "<|endoftext|>"


def test_generation_takes_the_likeliest_of_what_is_allowed(model, tasks, tokenizer):
    """Token by token against the model itself."""
    task, e = tasks["multi"], Example("1", {"text": "aspirin lowers fever"}, ())
    prompt = encode_prompt(task, e, tokenizer, 120).ids
    answer = Answer.begin(task, e, tokenizer)
    generate_answers(model, BACKEND, [prompt], [answer], 4)
    again = Answer.begin(task, e, tokenizer)
    for token in answer.ids:
        allowed = again.allowed()
        scores = [log_p(model, [*prompt, *again.ids, a], len(prompt) + len(again.ids)) for a in allowed]
        assert scores[allowed.index(token)] == pytest.approx(max(scores), abs=1e-5)
        again.write(token)
    assert again.labels == answer.labels is not None


@pytest.mark.parametrize("decoding", ["likelihood", "generation"])
def test_scores_do_not_depend_on_batches_or_order(model, tasks, tokenizer, decoding):
    task = tasks["single"]
    task.config = task.config.model_copy(update={"decoding": decoding})
    draw = np.random.default_rng(0)
    examples = [
        Example(str(i), {"context": "fever " * int(draw.integers(0, 9)), "question": f"is it {i}?"}, "yes")
        for i in range(9)
    ]
    one = evaluate_task(model, BACKEND, task, examples, tokenizer, 120, batch_size=1, resamples=0)
    many = evaluate_task(model, BACKEND, task, examples[::-1], tokenizer, 120, batch_size=4, resamples=0)
    for a, b in zip(one.predictions, many.predictions[::-1], strict=True):
        assert (a.id, a.prediction) == (b.id, b.prediction)
        if decoding == "likelihood":
            assert a.log_p == pytest.approx(b.log_p, abs=1e-4)
    assert not model.training


def test_normalisations(model, tasks, tokenizer):
    """Per token, and less the likelihood after the empty example."""
    task, e = tasks["single"], Example("1", {"context": "a fever", "question": "lower?"}, "yes")
    found = {}
    for kind in ("none", "length", "pmi"):
        task.config = task.config.model_copy(update={"decoding": "likelihood", "normalize": kind})
        found[kind] = evaluate_task(model, BACKEND, task, [e], tokenizer, 120, resamples=0).predictions[0].log_p
    texts, source = task.choices(e), task.source(e).text
    blank = task.source(Example("1", {"context": "", "question": ""}, None)).text
    for label, text in texts.items():
        a = tokenizer.encode(text)
        shared = len(set(tokenizer.encode(t)[0] for t in texts.values())) == 1
        plain, prior = (
            log_p(model, tokenizer.encode(s) + a, len(tokenizer.encode(s)) + shared) for s in (source, blank)
        )
        assert found["none"][label] == pytest.approx(plain, abs=1e-4)
        assert found["length"][label] == pytest.approx(plain / (len(a) - shared), abs=1e-4)
        assert found["pmi"][label] == pytest.approx(plain - prior, abs=1e-4)
