"""What of a task's files is left out, or hardly meant, is counted with its first place; an empty split is refused."""

import json
from random import Random

import pytest

from modelzoo.config.errors import UserError
from modelzoo.evaluation.official.prepare import prepare_task
from modelzoo.evaluation.tasks.remarks import read_examples
from tests import choice_files
from tests.evaluation.forms.test_forms import HOC, HOC_TEMPLATE
from tests.tasks_at_hand import NER, SINGLE, make

PUBTATOR = """1|t|Aspirin and fever.
1|a|Aspirin lowers it.
1\t0\t7\tAspirin\tC\tD001241
1\t0\t17\tAspirin and fever\tD\tD005334

2|t|
2|a|

1|t|Aspirin and fever.
1|a|Aspirin lowers it.

3|t|
3|a|   

4|t|Nothing.
4|a|
"""  # noqa: W291


@pytest.mark.parametrize("sentences", [False, True])
def test_documents_and_entities_that_are_left_out(tmp_path, sentences):
    keys = {"sentences": str(sentences).lower()}
    task = make(tmp_path, "ner", NER, {"train.txt": PUBTATOR, "dev.txt": "1|t|\n1|a| \n"}, **keys)
    examples, remarks = read_examples(task, "train")
    assert {e.id.partition("_")[0] for e in examples} == {"1", "4"}
    at = f"{tmp_path / 'train.txt'}:"
    assert remarks.as_dict() == {
        "entities that overlap a longer one: left out": {"count": 1, "first": f"{at}3"},
        "documents without a word: left out": {"count": 2, "first": f"{at}6"},
        "documents that are there already, word for word: left out": {"count": 1, "first": f"{at}9"},
    }
    assert f"2 documents without a word: left out (first: {at}6)" in remarks.describe()
    with pytest.raises(UserError, match=r"dev.txt: holds no example"):
        read_examples(task, "dev")


def test_documents_that_a_protocol_leaves_out(tmp_path):
    for protocol, left in (("BLUE", 1), ("BLURB", 0)):
        task = make(tmp_path / protocol, "hoc", HOC_TEMPLATE, {"train.tsv": HOC}, protocol=protocol)
        examples, remarks = read_examples(task, "train")
        assert len(examples) == 2 - left and sum(r["count"] for r in remarks.as_dict().values()) == left
    assert not remarks.describe()


def rows(*pairs) -> str:
    text = [{"id": f"q{i}", "context": c, "question": "is it?" if c is not None else " ", "label": label}
            for i, (c, label) in enumerate(pairs)]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in text)


def test_labels_and_texts_that_are_not_there(tmp_path):
    text = rows(("x", "yes"), ("", None), (None, "no"), ("x", None))
    files = {"train.jsonl": text, "dev.jsonl": rows((None, "yes"), (None, "no"))}
    task = make(tmp_path, "classification", SINGLE, files)
    assert read_examples(task, "train")[1].as_dict() == {
        "without a label: not scored": {"count": 2, "first": "q1"},
        "with an empty {context}: taken as they are": {"count": 2, "first": "q1"},
        "with an empty {question}: taken as they are": {"count": 1, "first": "q2"},
    }
    with pytest.raises(UserError, match=r"{context}, {question}: empty in every example of the dev split"):
        read_examples(task, "dev")


def test_questions_that_prepare_task_leaves_out(tmp_path):
    choice_files.write_bioasq(tmp_path / "in", Random(0))
    written = prepare_task("bioasq", str(tmp_path / "in"), str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "made_from.json").read_text())["remarks"]
    asked = json.loads((tmp_path / "in" / "training13b.json").read_text())["questions"]
    place = [q["type"] for q in asked].index("factoid") + 1
    assert found == {
        "questions of the type factoid: left out": {
            "count": 1, "first": f"{tmp_path / 'in' / 'training13b.json'}: question {place}",
        },
        "training questions that are in the test, too: left out of train and dev": {"count": 1, "first": "60"},
    }  # fmt: skip
    assert "1 questions of the type factoid: left out (first: " in written
