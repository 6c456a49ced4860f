"""Each form's files: what is read from them, and the one line that says what is wrong with them."""

import json
from pathlib import Path

import pytest

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples import pubtator
from modelzoo.evaluation.examples.conll import read_conll
from modelzoo.evaluation.forms.load import load_task
from tests.tasks_at_hand import MULTI, NER, SINGLE, make

REPO = Path(__file__).resolve().parents[3]
PUBTATOR = """1|t|Aspirin and fever.
1|a|Low-dose aspirin lowers fever. Lung cancer was rare.
1\t0\t7\tAspirin\tC\tD001241
1\t12\t17\tfever\tD\tD005334
1\t19\t35\tLow-dose aspirin\tC\tD001241
1\t50\t61\tLung cancer\tD\tD008175
1\tCID\tD001241\tD005334

2|t|Nothing.
2|a|At all
"""
CONLL = """-DOCSTART-\tO

Aspirin\tNN\tB-C
lowers\tVB\tO
fever\tNN\tI-D

None\tNN\tO
"""
HEAD = "labels\tsentence\tindex\n"
HOC = HEAD + "".join(
    f"{labels}\t{text}\t{index}\n"
    for labels, text, index in [
        ("0_0,6_1", "New vessels grow .", "11_s0"),
        ("0_1,6_0", "Cells migrate .", "11_s1"),
        ("0_0,6_0", "Nothing of note .", "12_s0"),
    ]
)
HOC_TEMPLATE = 'source: "{text}"\ntarget: " the type of this document is {label}."\nempty: empty\n'
FOLDS = {"pqal_fold0": {"train": ["1", "2"], "dev": ["3"]}}


def question(answer="yes", **more):
    return {
        "QUESTION": "Is\nit?",
        "CONTEXTS": ["One.", "Two."],
        "LABELS": ["AIM", "END"],
        "final_decision": answer,
        **more,
    }


PQA = {"1": question(), "2": question("no"), "3": question("maybe")}


def pubmedqa(folder, folds=FOLDS, questions=PQA, **files):
    texts = {"pqal_folds.json": folds, "pqal_cv_500.json": questions, **files}
    texts = {n: t if isinstance(t, str) else json.dumps(t) for n, t in texts.items()}
    return make(folder, "pubmedqa", SINGLE.replace(', "not": "not"', ""), texts)


def test_pubmedqa(tmp_path):
    task = pubmedqa(tmp_path)
    a, b = task.examples("train")
    assert (a.id, a.gold, b.gold) == ("1", "yes", "no")
    assert a.fields == {"question": "Is it?", "context": "One. Two.", "sections": "Aim: One.\nEnd: Two."}
    assert [e.id for e in task.examples("dev")] == ["3"]
    assert task.source(a).text == "One. Two.\nQuestion: Is it?\nAnswer:"


def test_pubmedqas_test_set_comes_from_the_authors_file(tmp_path):
    task = pubmedqa(tmp_path, **{"pqal_test_ids.json": ["9", "8"]})
    with pytest.raises(UserError, match="ori_pqal"):
        task.examples("test")
    (tmp_path / "ori_pqal.json").write_text(json.dumps({**PQA, "8": question("no"), "9": question()}))
    assert [e.id for e in task.examples("test")] == ["9", "8"]
    assert task.official({"9": "yes", "8": "maybe"}) == {"9": "yes", "8": "maybe"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"folds": {}}, r"pqal_folds.json: has no train ids for pqal_fold0"),
        ({"folds": {"pqal_fold0": {"train": ["1", "1"]}}}, r"pqal_fold0.train: id 1 occurs twice"),
        ({"folds": {"pqal_fold0": {"train": ["1", "77"]}}}, r"lacks 1 of the split's 2 questions: 77|lacks 1 .*77"),
        ({"folds": '{"pqal_fold0": '}, r"pqal_folds.json:1: is not valid JSON"),
        (
            {"questions": {"1": question("perhaps"), "2": question()}},
            r"1: unknown label 'perhaps'.*knows yes, no, maybe",
        ),
        (
            {"questions": {"1": question(LABELS=["AIM"]), "2": question()}},
            r"pqal_cv_500.json: 1: LABELS: 1 headings of 2 CONTEXTS",
        ),
        (
            {"questions": {"1": {"QUESTION": "?"}, "2": question()}},
            r"pqal_cv_500.json: 1: CONTEXTS: is missing; has no QUESTION with CONTEXTS",
        ),
        ({"questions": '{"1": {}, "1": {}}'}, r"pqal_cv_500.json:1: is not valid JSON: gives the key '1' twice"),
        ({"questions": "[1]"}, r"is not an object of PMID"),
    ],
)
def test_pubmedqa_of_bad_files(tmp_path, files, said):
    with pytest.raises(UserError, match=said):
        pubmedqa(tmp_path, **files).examples("train")


def test_missing_folds_say_how_to_name_them(tmp_path):
    task = pubmedqa(tmp_path)
    (tmp_path / "pqal_folds.json").unlink()
    with pytest.raises(UserError, match=r"pqal_folds.json: no such file \(the ten official folds\)"):
        task.examples("train")


def test_hoc_by_its_three_protocols(tmp_path):
    read = {
        p: make(tmp_path / p, "hoc", HOC_TEMPLATE, {"train.tsv": HOC}, protocol=p) for p in ("BLUE", "BLURB", "BioGPT")
    }
    both = ("activating invasion and metastasis", "inducing angiogenesis")
    blurb = read["BLURB"].examples("train")
    assert [(e.id, e.gold) for e in blurb] == [("11", both), ("12", ())]
    assert blurb[0].fields["text"] == "New vessels grow . Cells migrate ."
    assert [e.id for e in read["BLUE"].examples("train")] == ["11"]
    sentences = read["BioGPT"].examples("train")
    assert [e.gold for e in sentences] == [both[1:], both[:1], ()]
    assert read["BioGPT"].target(sentences[2]) == " the type of this document is empty."
    assert read["BLURB"].target(blurb[0]) == f" the type of this document is {both[0]}|{both[1]}."
    for protocol, task in read.items():
        assert protocol in task.describe()
    assert [[task.find_unit(e.id) for e in task.examples("train")] for task in read.values()] == [
        ["11"], ["11", "12"], ["11", "11", "12"],
    ]  # fmt: skip
    golds = [both, ()]
    found = [both[:1], ()]
    assert read["BLURB"].metrics(golds, found)["micro_f1"] == pytest.approx(2 / 3)  # 1 right of 1 said, of 2 there
    assert read["BioGPT"].metrics(golds, found)["micro_f1_11"] == pytest.approx(4 / 5)  # empty is right once more
    assert read["BLUE"].metrics(golds[:1], found[:1])["example_f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "0_0,99_1\tx\t1_s0\n", r"train.tsv:2: unknown label '99_1'"),
        (HEAD + "0_0\tx\n", r"train.tsv:2: has 2 columns, the first line names 3"),
        (HEAD + "0_0\tx\t1_s0\n0_0\ty\t1_s0\n", r"train.tsv: id 1_s0 occurs twice"),
        (HEAD, r"train.tsv: holds no example"),
        ("labels\tindex\n0_0\t1_s0\n", r"train.tsv:2: has no column 'sentence'"),
    ],
)
def test_hoc_of_bad_files(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        make(tmp_path, "hoc", HOC_TEMPLATE, {"train.tsv": text}, protocol="BLURB").examples("train")


def test_hoc_wants_its_protocol_named(tmp_path):
    with pytest.raises(UserError, match="choose BLUE, BLURB or BioGPT"):
        make(tmp_path, "hoc", HOC_TEMPLATE, {})


def test_pubtator_becomes_tagged_sentences():
    found = list(pubtator.read_pubtator("f", PUBTATOR, sentences=True))
    assert [name for _, name, _, _ in found] == ["1_s0", "1_s1", "1_s2", "2_s0", "2_s1"]
    assert list(zip(found[0][2], found[0][3], strict=True)) == [
        ("Aspirin", "B-C"), ("and", "O"), ("fever", "B-D"), (".", "O"),
    ]  # fmt: skip
    assert found[1][3] == ["B-C", "I-C", "I-C", "I-C", "O", "O", "O"]  # Low - dose aspirin
    assert found[2][3][:2] == ["B-D", "I-D"]
    (_, _, words, tags), _ = pubtator.read_pubtator("f", PUBTATOR, sentences=False)
    assert len(words) == len(tags) == sum(len(f[2]) for f in found[:3])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1\t0\t7\tAspirin", "1\t1\t8\tAspirin", r"f:3: characters 1-8 of document 1 are not 'Aspirin'"),
        ("1\t0\t7\tAspirin", "7\t0\t7\tAspirin", r"f:3: is neither"),
        ("1\t0\t7\tAspirin\tC\tD001241", "1\t0", r"f:3: is no annotation"),
        ("\n2|t|", "2|t|", r"f:8: document 2 begins without a blank line"),
    ],
)
def test_pubtator_of_bad_files(old, new, said):
    with pytest.raises(UserError, match=said):
        list(pubtator.read_pubtator("f", PUBTATOR.replace(old, new, 1), sentences=True))


def test_a_repeated_document_counts_once_and_another_of_its_id_is_an_error():
    once = list(pubtator.read_pubtator("f", PUBTATOR, sentences=True))
    assert list(pubtator.read_pubtator("f", f"{PUBTATOR}\n{PUBTATOR}", sentences=True)) == once
    with pytest.raises(UserError, match=r"f:\d+: document 2 occurs twice with different words"):
        list(pubtator.read_pubtator("f", f"{PUBTATOR}\n{PUBTATOR.replace('At all', 'at ALL')}", sentences=True))


def test_conll(tmp_path):
    found = [(words, tags) for _, _, words, tags in read_conll("f", CONLL)]
    # I-D without a B-D before it is IOB1's beginning.
    assert found == [(["Aspirin", "lowers", "fever"], ["B-C", "O", "B-D"]), (["None"], ["O"])]
    with pytest.raises(UserError, match="f:2: 'X' is no IOB tag"):
        list(read_conll("f", "a O\nb X\n"))
    with pytest.raises(UserError, match="f:1: has no tag after the word 'a'"):
        list(read_conll("f", "a\n"))
    task = make(tmp_path, "ner", NER, {"train.tsv": CONLL.replace("I-D", "I-E")})
    with pytest.raises(UserError, match="unknown label 'B-E'"):
        task.examples("train")


def test_relations_similarity_and_many_labels(tmp_path):
    ddi = make(
        tmp_path / "r", "relations", 'source: "{sentence}"\nlabels: {none: none, effect: effect, advise: advice}',
        {"train.tsv": "index\tsentence\tlabel\na\t@DRUG$ \"helps @DRUG$\tnone\nb\tx\teffect\n"},
        id_field="index", negative="none",
    )  # fmt: skip
    examples = ddi.examples("train")
    assert examples[0].fields["sentence"] == '@DRUG$ "helps @DRUG$' and [e.id for e in examples] == ["a", "b"]
    ids = {"DDI-DrugBank.d481.s0.p12": "DDI-DrugBank.d481", "10471277.T9.T26": "10471277", "a": "a"}  # BLUE's
    assert [ddi.find_unit(i) for i in ids] == list(ids.values())
    assert ddi.metrics(["none", "effect", "advise"], ["none", "none", "advise"])["micro_f1"] == pytest.approx(2 / 3)
    alike = make(
        tmp_path / "s", "similarity", 'source: "{a} {b}"\nlabels: {"0": "0", "2": "2", "4": "4"}',
        {"train.csv": "id,a,b,score\n1,x,y,2.9\n2,x,\"y, z\",0\n"},
        label_field="score", scale='{"0": 0.0, "2": 2.0, "4": 4.0}',
    )  # fmt: skip
    first, second = alike.examples("train")
    assert (first.gold, alike.target(first), second.fields["b"]) == (2.9, " 2", "y, z")
    assert alike.choose(["0", "2", "4"], pytest.importorskip("numpy").log([0.25, 0.25, 0.5])) == pytest.approx(2.5)
    for bad, said in (("high", "train.csv:2: 'high' is not a number"), ("9", "outside the scale 0 to 4")):
        (tmp_path / "s/train.csv").write_text(f"id,a,b,score\n1,x,y,{bad}\n")
        with pytest.raises(UserError, match=said):
            alike.examples("train")
    rows = [{"text": "x", "label": ["C", "A"]}, {"text": "y", "label": []}]
    many = make(tmp_path / "m", "multilabel", MULTI, {"train.jsonl": "\n".join(map(json.dumps, rows))})
    assert [e.gold for e in many.examples("train")] == [("A", "C"), ()]
    (tmp_path / "m/train.jsonl").write_text('{"text": "x", "label": ["Z"]}\n{"text')
    with pytest.raises(UserError, match=r"train.jsonl:1: unknown label 'Z'"):
        many.examples("train")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("source", '"{0}"', "is not a field"),
        ("source", '"{a"', "template.yaml:1: source"),
        ("target", '"none"', "target holds {label} once"),
        ("labells", "{}", "did you mean 'labels'"),
    ],
)
def test_bad_templates_name_file_and_key(tmp_path, key, value, said):
    base = {"source": '"{a}"', "target": '" {label}"', "labels": '{"yes": "yes"}'}
    text = "\n".join(f"{k}: {v}" for k, v in {**base, key: value}.items())
    with pytest.raises(UserError, match=r"template.yaml") as e:
        make(tmp_path, "classification", text, {})
    assert said in str(e.value)


def test_empty_splits_missing_folders_and_unnamed_files(tmp_path):
    task = make(tmp_path, "classification", SINGLE, {"train.jsonl": ""})
    with pytest.raises(UserError, match="holds no example"):
        task.examples("train")
    with pytest.raises(UserError, match="names no file for the dev split"):
        task.examples("dev")
    with pytest.raises(UserError, match="no such folder"):
        load_task(str(tmp_path / "task.yaml"), [f"data_dir={tmp_path / 'gone'}"]).examples("train")


@pytest.mark.parametrize("path", sorted((REPO / "configs/eval").glob("*.yaml")), ids=lambda p: p.stem)
def test_bundled_tasks_and_all_their_templates_load(path):
    task = load_task(str(path))
    assert task.describe() and task.main_metric
    for template in Path(task.template_path).parent.glob("*.yaml"):
        assert load_task(str(path), template=str(template)).labels


def test_the_baseline_is_the_constant_that_scores_best_on_train(tmp_path):
    """A rare class may beat the commonest, where the commonest does not count."""
    rows = "index\tlabel\n" + "".join(f"{i}\t{x}\n" for i, x in enumerate(["none"] * 5 + ["a"] * 2 + ["b"]))
    ddi = make(
        tmp_path / "r", "relations", 'source: "{index}"\nlabels: {none: none, a: a, b: b}', {"train.tsv": rows},
        id_field="index", negative="none",
    )  # fmt: skip
    train = ddi.examples("train")
    assert ddi.baseline(train, train[:2]) == ["a", "a"]
    many = make(tmp_path / "m", "multilabel", MULTI, {"train.jsonl": ""})
    golds = [(), (), ("A",), ("A", "B")]
    examples = [train[0]._replace(gold=g) for g in golds]
    assert many.baseline(examples, examples[:1]) == [("A",)]  # micro-F1 4/7; of ("A", "B") 6/11; of () 0


def test_cells_of_any_length_and_lines_that_end_at_line_breaks_alone(tmp_path):
    odd, long = "a\u2028b\x85c\x0bd\x0ce\rf", "q" * 300_000
    rows = [("1", odd, "c"), ("2", long, "c")]
    tsv = "id\tquestion\tcontext\tlabel\r\n" + "".join(f"{i}\t{q}\t{c}\tyes\r\n" for i, q, c in rows)
    csv = "id,question,context,label\n" + "".join(f'{i},"{q}",{c},yes\n' for i, q, c in rows)
    for name, text in (("train.tsv", tsv), ("train.csv", csv)):
        task = make(tmp_path / name, "classification", SINGLE, {}, train=name)
        (tmp_path / name / name).write_bytes(text.encode())
        assert [e.fields["question"] for e in task.examples("train")] == [odd, long]
    old = make(tmp_path / "mac", "classification", SINGLE, {}, train="train.jsonl")
    (tmp_path / "mac/train.jsonl").write_bytes(b'{"label": "yes", "question": "q"}\r{"label": "no"}\r')
    assert [e.gold for e in old.examples("train")] == ["yes", "no"]


def test_null_is_no_text_no_label_and_no_id(tmp_path):
    rows = [{"id": None, "question": None, "context": ["a", None, "b"], "label": None}]
    for form, template in (("classification", SINGLE), ("multilabel", MULTI)):
        task = make(tmp_path / form, form, template, {"train.jsonl": json.dumps(rows[0]) + "\n"})
        assert task.examples("train") == [("1", {"id": "", "question": "", "context": "a b"}, None)]


@pytest.mark.parametrize(("name", "text"), [("train.tsv", "x\ty\tyes\nu\tv\tno\n"), ("train.csv", "x,x,yes\nu,v,no\n")])
def test_a_table_without_a_line_of_names_is_named_as_such(tmp_path, name, text):
    task = make(tmp_path, "classification", SINGLE, {name: text}, train=name)
    with pytest.raises(UserError, match=rf"{name}:\d: .*; the first line is taken for the columns' names: put one"):
        task.examples("train")
