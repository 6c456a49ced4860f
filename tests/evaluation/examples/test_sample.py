"""A part of a split stands for the whole, however its file is sorted."""

import json

from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.examples.sample import take_sample
from modelzoo.evaluation.tasks.remarks import read_examples
from tests.tasks_at_hand import SINGLE, make


def test_a_sample_of_a_sorted_split_holds_its_answers():
    golds = ["yes"] * 276 + ["no"] * 169 + ["maybe"] * 55  # as PubMedQA's folds have them, in their order
    whole = [Example(str(20_000_000 + 37 * i), {}, gold) for i, gold in enumerate(golds)]
    last: set[str] = set()
    for count in (20, 100, 450):
        found = take_sample(whole, count)
        assert len(found) == count and [e for e in whole if e in found] == found
        assert take_sample(whole[::-1], count) == found[::-1]
        ids = {e.id for e in found}
        assert last <= ids
        last = ids
        shares = [sum(e.gold == g for e in found) / count for g in ("yes", "no", "maybe")]
        for share, expected in zip(shares, (0.552, 0.338, 0.11), strict=True):
            assert abs(share - expected) < 3 * (expected * (1 - expected) / count) ** 0.5
    assert take_sample(whole, None) == take_sample(whole, 999) == whole


def test_what_max_examples_leaves_out_is_counted(tmp_path):
    rows = [{"id": f"q{i}", "context": "c", "question": "q", "label": "yes" if i < 30 else "no"} for i in range(40)]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    task = make(tmp_path, "classification", SINGLE, {"dev.jsonl": text}, dev="dev.jsonl", max_examples=12)
    found, remarks = read_examples(task, "dev")
    assert len(found) == 12 and {e.gold for e in found} == {"yes", "no"}
    (line,) = remarks.describe()
    assert line.startswith("28 left out: max_examples takes 12 of 40, drawn by their ids (first: q")
