"""Rows for training: loss on the answer alone, contexts cut and questions never, soft prompts in their place."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.prompts.encode import encode_prompt, encode_training
from modelzoo.evaluation.prompts.soft_prompt import Soft
from tests.tasks_at_hand import MULTI, NER, SINGLE, make

VOCAB = 320
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=60)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    single = make(folder / "s", "classification", SINGLE, {}, long_fields="[context]")
    return {
        "single": single,
        "multi": make(folder / "m", "multilabel", MULTI, {}, long_fields="[text]"),
        "ner": make(folder / "n", "ner", NER, {}),
    }


def example(context="a fever", question="lower?", gold="yes") -> Example:
    return Example("7", {"context": context, "question": question}, gold)


@settings(deadline=None, max_examples=60)
@given(context=texts, question=texts, gold=st.sampled_from(["yes", "no", "maybe", "not"]), soft=st.integers(0, 5))
def test_a_row_is_the_text_with_loss_on_its_answer(tasks, tokenizer, context, question, gold, soft):
    task, e = tasks["single"], example(context, question, gold)
    data, counts = encode_training(task, [e], tokenizer, 600, Soft(soft, VOCAB))
    (ids, mask, labels), answer = data[0], tokenizer.encode(task.target(e)) + [tokenizer.eos]
    assert counts == (1, 0, 0, len(tokenizer.encode(task.source(e).text)))
    assert labels[mask == 1].tolist() == answer
    assert labels.max() < VOCAB
    begin = int(np.flatnonzero(mask)[0]) + 1
    assert ids[begin : begin + len(answer) - 1].tolist() == answer[:-1]  # what is said is seen at the next position
    assert ids[begin - soft : begin].tolist() == list(range(VOCAB, VOCAB + soft))
    assert tokenizer.decode(ids[: begin - soft].tolist()) == task.source(e).text


def test_a_prefix_stands_first(tasks, tokenizer):
    data, _ = encode_training(tasks["single"], [example()], tokenizer, 100, Soft(3, VOCAB, "prefix"))
    assert data[0, 0, :3].tolist() == [VOCAB, VOCAB + 1, VOCAB + 2]
    assert (data[0, 0, 3:] < VOCAB).all()


@settings(deadline=None, max_examples=80)
@given(context=texts, question=st.text("abc ?", max_size=10), length=st.integers(40, 90))
def test_only_the_context_is_cut_and_only_as_far_as_needed(tasks, tokenizer, context, question, length):
    task, e = tasks["single"], example(context, question)
    whole = tokenizer.encode(task.source(e).text)
    prompt = encode_prompt(task, e, tokenizer, length)
    answer = max(len(tokenizer.encode(t)) for t in task.choices(e).values())
    assert len(prompt.ids) == len(whole) - prompt.cut
    assert len(prompt.ids) + answer <= length
    if prompt.cut == 0:
        assert prompt.ids == whole
        return
    assert length - answer - len(prompt.ids) <= 3  # a character's last bytes may go together: at most four tokens
    text = tokenizer.decode(prompt.ids)
    assert text.endswith(f"\nQuestion: {question}\nAnswer:")
    assert context.startswith(text.removesuffix(f"\nQuestion: {question}\nAnswer:"))


def test_cuts_are_counted_and_what_cannot_be_cut_is_refused_by_id(tasks, tokenizer):
    task = tasks["single"]
    short, long = example(), example("fever " * 50)
    _, counts = encode_training(task, [short, long], tokenizer, 60)
    whole = len(tokenizer.encode(task.source(long).text))
    answer = max(len(tokenizer.encode(t)) for t in task.choices(long).values())
    assert counts.truncated == 1 and counts.tokens_cut == whole + answer - 60
    with pytest.raises(UserError, match=r"example 7 needs \d+ tokens .*template\.yaml\) .*context"):
        encode_training(task, [example(question="why " * 60)], tokenizer, 60)
    with pytest.raises(UserError, match="example 7 has no label"):
        encode_training(task, [example(gold=None)], tokenizer, 60)


def test_training_and_evaluation_see_one_prompt_whatever_the_answer(tasks, tokenizer):
    """Room is kept for the longest answer, or the length of a cut context would tell the answer's."""
    for name, golds in (("single", ["yes", "maybe"]), ("multi", [(), ("A", "B", "C")])):
        fields = {"context": "fever " * 40, "question": "?", "text": "fever " * 40}
        prompts = [encode_prompt(tasks[name], Example("1", fields, g), tokenizer, 64) for g in golds]
        assert prompts[0] == prompts[1]


def test_every_split_fits_the_hdf5_contract(tasks, tokenizer):
    e = Example("1", {"text": "aspirin lowers fever"}, ("B-C", "O", "B-D"))
    data, _ = encode_training(tasks["ner"], [e], tokenizer, 90)
    assert data.dtype == np.int32 and data.shape == (1, 3, 90)
    assert set(np.unique(data[:, 1])) == {0, 1}
    said = tokenizer.decode(data[0, 2][data[0, 1] == 1].tolist())
    assert said == " aspirin/C lowers/O fever/D<|endoftext|>"


def test_template_fields_are_checked_by_name(tmp_path, tokenizer):
    row = json.dumps({"id": "1", "question": "?", "label": "yes"})
    task = make(tmp_path, "classification", SINGLE, {"train.jsonl": row})
    with pytest.raises(UserError, match=r"there is no field {context}; example 1 of task has {id}, {question}"):
        task.source(task.examples("train")[0])


def test_an_empty_source_is_an_end_of_text(tmp_path, tokenizer):
    task = make(
        tmp_path, "classification", SINGLE.replace("{context}\\nQuestion: {question}\\nAnswer:", "{context}"), {}
    )
    assert task.template.source == "{context}"
    data, counts = encode_training(task, [example("")], tokenizer, 20)
    assert data[0, 0, 0] == tokenizer.eos and data[0, 1, 0] == 1
    assert tokenizer.decode(data[0, 2][data[0, 1] == 1].tolist()) == " yes<|endoftext|>"
    assert counts.truncated == 0
