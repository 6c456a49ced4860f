"""Multiple choice: prompts and shots by their definition, lengths, what is cut, and the one line about bad files."""

import json
from random import Random

import numpy as np
import pytest

from modelzoo.config.errors import UserError
from modelzoo.evaluation.forms.choice import Picked
from modelzoo.evaluation.prompts.few_shot import count_cut, encode_questions
from modelzoo.evaluation.prompts.soft_prompt import Soft
from modelzoo.evaluation.scores.evaluate import MEAN, Prediction, score_groups, score_predictions
from modelzoo.evaluation.scores.results import hash_task
from tests.tasks_at_hand import SINGLE, make

LETTERS = """
description: "About {subject}.\\n\\n"
source: "Q: {question}\\nA. {A}\\nB. {B}\\nAnswer:"
labels: {A: A, B: B}
"""
TEXTS = 'source: "Q: {question}\\nAnswer:"\nlabels: {A: "{A}", B: "{B}"}\n'


def row(i, **more):
    subject = ["bones", "cells"][i % 2]
    return {"id": str(i), "question": f"q{i}?", "A": f"a {i}", "B": f"été {i}", "label": "AB"[i % 3 == 0],
            "subject": subject, **more}  # fmt: skip


def lines(rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


def choice(folder, template=LETTERS, train=range(10), test=range(20, 26), **keys):
    files = {"train.jsonl": lines(map(row, train)), "test.jsonl": lines(map(row, test))}
    return make(folder, "choice", template, files, group_field="subject", **keys)


def asked(i):
    return f"Q: q{i}?\nA. a {i}\nB. été {i}\nAnswer:"


def solved(i):
    return f"{asked(i)} {'AB'[i % 3 == 0]}\n\n"


def test_shots_are_drawn_one_question_after_the_other_from_one_generator(tmp_path):
    """As lm-evaluation-harness's sampler: the n-th question gets the generator's n-th draw from the whole split."""
    task = choice(tmp_path, shots="{count: 3, seed: 5}")
    draw = Random(5)
    expected = ["".join(map(solved, draw.sample(range(10), 3))) for _ in range(6)]
    subject = lambda i: ["bones", "cells"][i % 2]
    prompts = task.prompts(task.examples("test"), "test")
    assert prompts == [f"About {subject(i)}.\n\n{e}{asked(i)}" for i, e in zip(range(20, 26), expected, strict=True)]
    draw, own = Random(5), task.prompts(task.examples("train"), "train")
    for i, prompt in enumerate(own):  # among its own split one more is drawn, and the question itself left out
        drawn = [x for x in draw.sample(range(10), 4) if x != i][:3]
        assert prompt == f"About {subject(i)}.\n\n{''.join(map(solved, drawn))}{asked(i)}"


def test_the_first_shots_of_the_same_group(tmp_path):
    task = choice(tmp_path, shots="{count: 2, order: first, same_group: true}")
    found = [[int(e.id) for e in shots] for shots in task.draw_shots(task.examples("test"), "test")]
    assert found == [[0, 2], [1, 3]] * 3
    own = [[int(e.id) for e in shots] for shots in task.draw_shots(task.examples("train"), "train")]
    assert own[:4] == [[2, 4], [3, 5], [0, 4], [1, 5]]


@pytest.mark.parametrize("more", ["count: 11", "count: 6, same_group: true", "count: 10, split: test"])
def test_too_few_shots_are_one_line(tmp_path, more):
    task = choice(tmp_path, shots=f"{{{more}}}")
    with pytest.raises(UserError, match=r"task: shots.count: \d+ are asked for, the (train|test) split has \d+"):
        task.prompts(task.examples("test"), "test")


def test_lengths_are_characters_and_bytes_without_the_delimiter(tmp_path):
    task = choice(tmp_path, TEXTS)
    e = task.examples("test")[0]._replace(fields={**row(20), "A": "abcd", "B": "éé"})
    assert task.choices(e) == {"A": " abcd", "B": " éé"}
    assert task.pick(e, [-4.0, -2.5]) == Picked("B", "A", "B")  # -1 and -1.25 a character, -1 and -0.625 a byte
    assert task.pick(e, [-8.0, -4.0]) == Picked("B", "A", "B")  # -2 and -2 a character: the first of equals
    assert task.pick(e, [-3.0, -4.0]) == Picked("A", "A", "A")
    golds, picked = ["A", "B"], [Picked("A", "B", "A"), Picked("B", "B", "A")]
    assert task.metrics(golds, picked) == {"acc": 1.0, "acc_norm": 0.5, "acc_bytes": 0.5}
    drawn = task.metrics(golds, picked, np.array([[1.0, 1.0], [3.0, 1.0]]))  # as if the first came three times
    assert {k: list(v) for k, v in drawn.items()} == {"acc": [1, 1], "acc_norm": [0.5, 0.25], "acc_bytes": [0.5, 0.75]}


def test_yes_and_no_have_the_macro_f1_of_scikit_learn(tmp_path):
    from sklearn.metrics import f1_score

    task = make(tmp_path, "choice", SINGLE, {})
    golds, picked = ["yes", "no", "no", "maybe"], ["yes", "no", "yes", "yes"]
    found = task.metrics(golds, [Picked(p, "no", "no") for p in picked])
    assert found["macro_f1"] == pytest.approx(f1_score(golds, picked, average="macro"))
    assert found["acc"] == found["acc_norm"] == 0.5 and "macro_f1" not in choice(tmp_path).metrics(["A"], [("A",) * 3])


def test_prompts_are_cut_at_their_beginning_and_counted(tmp_path, tokenizer):
    task = choice(tmp_path, shots="{count: 2}")
    examples = task.examples("test")
    whole = encode_questions(task, examples, "test", tokenizer, 10_000)
    assert count_cut(whole)[1:3] == (0, 0) and not count_cut(whole).questions_cut
    sizes = [len(a.pairs[0][0]) for a in whole]
    question = [len(tokenizer.encode(asked(i))) for i in range(20, 26)]
    for length, soft in ((max(question), Soft()), (max(question) - 9, Soft()), (max(question), Soft(3, 320)),
                         (max(question), Soft(3, 320, "prefix"))):  # fmt: skip
        cut = encode_questions(task, examples, "test", tokenizer, length, soft)
        for full, found in zip(whole, cut, strict=True):
            for (context, after), (kept, same) in zip(full.pairs, found.pairs, strict=True):
                assert same == after
                text = context[-(length + 1 - len(after) - soft.tokens) :]
                learned = list(range(320, 320 + soft.tokens))
                assert kept == (learned + text if soft.place == "prefix" else text + learned)
                assert len(kept) + len(after) - 1 <= length
        counts = count_cut(cut)
        room = length - soft.tokens + 1 - len(whole[0].pairs[0][1])  # the last token is predicted, and never read
        assert counts.truncated == 6 and counts.tokens_cut == sum(s - room for s in sizes)
        assert counts.questions_cut == sum(q > room for q in question)


def test_context_and_choice_are_tokenized_together(tmp_path, tokenizer):
    """Blanks at the end of a prompt belong to the choice, as the harness has it."""
    source = 'source: "{question} lowers  "\ntarget: "{label}"\nlabels: {A: fever, B: appetite}\n'
    task = choice(tmp_path, source)
    for a, i in zip(encode_questions(task, task.examples("test"), "test", tokenizer, 99), range(20, 26), strict=True):
        for (context, after), words in zip(a.pairs, ("fever", "appetite"), strict=True):
            assert context == tokenizer.encode(f"q{i}? lowers")
            assert context + after == tokenizer.encode(f"q{i}? lowers  {words}")


def test_choices_that_cannot_be_scored_are_one_line(tmp_path, tokenizer):
    task = choice(tmp_path / "a", TEXTS)
    long = [e._replace(fields={**e.fields, "B": "zq" * 40}) for e in task.examples("test")]
    with pytest.raises(UserError, match=r"task: question 20: choice B has more tokens than the context of 20"):
        encode_questions(task, long, "test", tokenizer, 20)
    empty = choice(tmp_path / "b", 'source: "{question}"\ntarget: "{label}"\nlabels: {A: "", B: B}\n')
    with pytest.raises(UserError, match=r"question 20: choice A has no token of its own"):
        encode_questions(empty, empty.examples("test"), "test", tokenizer, 20)


def test_groups_and_their_mean_are_those_of_their_own_examples(tmp_path):
    task = choice(tmp_path, test=range(20, 29))
    examples = task.examples("test")
    found = [Prediction(e.id, e.gold, Picked(*("A" if n < 7 else e.gold) * 3)) for n, e in enumerate(examples)]
    whole = score_predictions(task, found, count_cut([]))
    scores = score_groups(task, examples, whole, 200)
    by = {"bones": [], "cells": []}
    for e, p in zip(examples, found, strict=True):
        by[e.fields["subject"]].append(p.prediction.acc == e.gold)
    assert list(scores.groups) == ["bones", "cells", MEAN] and scores.groups["bones"].n == 5
    shares = {name: sum(right) / len(right) for name, right in by.items()}
    assert {n: scores.groups[n].metrics["acc"] for n in by} == pytest.approx(shares)
    assert scores.groups[MEAN].metrics["acc"] == pytest.approx(sum(shares.values()) / 2)
    assert scores.metrics["acc"] == pytest.approx(sum(map(sum, by.values())) / 9) != scores.groups[MEAN].metrics["acc"]
    for group in scores.groups.values():
        low, high = group.intervals["acc"]
        assert low <= group.metrics["acc"] <= high


def test_the_constant_answer_is_a_letter(tmp_path):
    task = choice(tmp_path)
    train, test = task.examples("train"), task.examples("test")
    assert task.baseline(train, test) == [Picked("A", "A", "A")] * 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"A": " "}, r"train.jsonl:2: A: is empty; `make it` makes the files from its page"),
        ({"question": ""}, r"train.jsonl:2: question: is empty"),
        ({"label": "C"}, r"train.jsonl:2: label: 'C' is none of A, B"),
        ({"B": ...}, r"train.jsonl:2: has no column 'B' \(it has id, question, A, label, subject\)"),
        ({"subject": ...}, r"train.jsonl:2: has no column 'subject'"),
        ({"label": ...}, r"train.jsonl:2: has no column 'label'"),
    ],
)
def test_bad_rows_name_file_line_and_what_makes_it(tmp_path, more, said):
    bad = {k: v for k, v in row(1, **more).items() if v is not ...}
    origin = "{url: its page, licence: MIT, command: make it}"
    task = make(
        tmp_path, "choice", LETTERS, {"train.jsonl": lines([row(0), bad])}, group_field="subject", origin=origin
    )
    with pytest.raises(UserError, match=said):
        task.examples("train")


def test_missing_files_and_folders_say_the_command(tmp_path):
    origin = "{url: its page, licence: MIT, command: make it}"
    task = make(tmp_path, "choice", LETTERS, {"train.jsonl": "x"}, test="test.jsonl", origin=origin)
    with pytest.raises(UserError, match=r"test.jsonl: no such file; `make it` makes the files from its page"):
        task.examples("test")
    gone = make(tmp_path / "b", "choice", LETTERS, {}, train="x.jsonl", data_dir=tmp_path / "gone", origin=origin)
    with pytest.raises(UserError, match=r"gone: no such folder .*; give --data_dir; `make it` makes"):
        gone.examples("train")


@pytest.mark.parametrize(
    ("form", "keys", "said"),
    [
        ("choice", {"normalize": "length"}, "multiple choice compares likelihoods"),
        ("choice", {"decoding": "generation"}, "multiple choice compares likelihoods"),
        ("choice", {"shots": "{count: 1, same_group: true}"}, "shots.same_group: needs group_field"),
        ("classification", {"shots": "{count: 1}"}, "shots are for multiple choice: choice, pubmedqa_choice"),
        ("pubmedqa_choice", {"group_field": "x"}, "group_field is for form: choice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, form, keys, said):
    with pytest.raises(UserError, match=said):
        make(tmp_path, form, SINGLE, {}, **keys)


def test_new_keys_leave_the_hashes_of_older_tasks_as_they_are(tmp_path):
    """Stored results hold them; this one is what version 0.1.0 wrote before there was multiple choice."""
    before = "f9279cb40d5f6015b3d8d354d46197eccc61a74652cb09dc5ce03e3bdb8af0ae"
    assert hash_task(make(tmp_path, "classification", SINGLE, {})) == before
