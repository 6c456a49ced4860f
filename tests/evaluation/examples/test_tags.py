"""Word-and-tag files in every scheme, held to seqeval's; columns, NCBI-disease's mentions, and its one class."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import scheme

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples import pubtator
from modelzoo.evaluation.examples.conll import convert_tags, read_conll
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.statistics import metrics
from tests.tasks_at_hand import NER, make

SCHEMES = {s.__name__: s for s in (scheme.IOB1, scheme.IOB2, scheme.IOE1, scheme.IOE2, scheme.IOBES, scheme.BILOU)}
SPANS = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["O", "C", "D"])), min_size=1, max_size=8)


def write(spans, name):
    """The tags of (length, type) spans in a scheme of seqeval's."""
    tags, before, letters = [], "O", {"IOBES": "BIES", "BILOU": "BILU"}
    for i, (length, kind) in enumerate(spans):
        after = spans[i + 1][1] if i + 1 < len(spans) else "O"
        if kind == "O":
            made = ["O"] * length
        elif name in letters:
            begin, inside, end, single = letters[name]
            made = [single] if length == 1 else [begin, *[inside] * (length - 2), end]
        else:
            made = ["I"] * length
            if name == "IOB2" or name == "IOB1" and before == kind:
                made[0] = "B"
            if name == "IOE2" or name == "IOE1" and after == kind:
                made[-1] = "E"
        tags += [t if t == "O" else f"{t}-{kind}" for t in made]
        before = kind
    return tags


@settings(max_examples=60, deadline=None)
@given(SPANS, st.sampled_from(sorted(SCHEMES)))
def test_tags_of_every_scheme_give_seqevals_entities(spans, name):
    tags = write(spans, name)
    (theirs,) = scheme.Entities([tags], SCHEMES[name]).entities
    found = metrics.entities(tuple(convert_tags(tags)))
    assert found == {(e.tag, e.start, e.end - 1) for e in theirs}
    at, wanted = 0, set()
    for length, kind in spans:
        if kind != "O":
            wanted.add((kind, at, at + length - 1))
        at += length
    assert found == wanted


def test_bare_tags_take_the_templates_only_type(tmp_path):
    text = "a\tB\nb\tI\nc\tO\nd\tS\ne\tE\n"
    ((_, _, _, tags),) = read_conll("f", text, "Disease")
    assert tags == ["B-Disease", "I-Disease", "O", "B-Disease", "B-Disease"]
    one = 'source: "{text}"\ntarget: "{label}"\nlabels: {O: "/O", B-D: "/D", I-D: "/d"}'
    task = make(tmp_path / "one", "ner", one, {"train.tsv": text})
    assert task.examples("train")[0].gold == ("B-D", "I-D", "O", "B-D", "B-D")
    with pytest.raises(UserError, match=r"train\.tsv:1: tag 'B' names no type, and the template knows several"):
        make(tmp_path / "two", "ner", NER, {"train.tsv": text}).examples("train")


def test_columns_end_at_tabs_where_there_are_tabs_and_never_at_other_spaces(tmp_path):
    rows = [("5\u00a0mg", "B-C"), ("New York", "O"), ("a\u2028b\x0bc\x85", "I-D"), ("", ""), ("\u3000", "O")]
    text = "".join(f"{w}\tNN\t{t}\n" if t else "\n" for w, t in rows)
    task = make(tmp_path / "tabs", "ner", NER, {"train.tsv": text})
    first, second = task.examples("train")
    assert first.gold == ("B-C", "O", "B-D") and second.gold == ("O",)
    assert task.target(first) == " 5\u00a0mg/C New York/O a\u2028b\x0bc\x85/D"
    assert task.baseline([], [first]) == [("O", "O", "O")]
    state, labels = None, []  # what decoding may write is one tag a word
    while (option := task.options(first, state)[0]).text is not None:
        labels += [option.label] if option.label else []
        state = option.state
    assert len(labels) == 3
    blanks = make(tmp_path / "blanks", "ner", NER, {"train.conll": "5\u00a0mg NN  B-C\n"}, train="train.conll")
    assert blanks.examples("train")[0].fields == {"text": "5\u00a0mg"}
    for bad, said in (
        ("a\tO\nb O\n", "f:2: has no tag .* .and no tab"),
        ("\tO\n", "f:1: has no word before the tag 'O'"),
    ):
        with pytest.raises(UserError, match=said):
            list(read_conll("f", bad))


BLANKS = '1|t|Fever.\n1|a|Seizures " plus " (GEFS) in lung cancer.\n'


@pytest.mark.parametrize("mention", ['Seizures " plus "', 'Seizures " plus "  '])
def test_a_mention_may_end_in_blanks_that_its_place_does_not_hold(mention):
    """As document 10923035 of NCBI-disease's training set has it; the entity is the words."""
    text = BLANKS + f"1\t7\t24\t{mention}\tSpecificDisease\tD1\n"
    found = [t for *_, tags in pubtator.read_pubtator("f", text, sentences=True) for t in tags]
    assert found.count("B-SpecificDisease") == 1 and found.count("I-SpecificDisease") == 3
    with pytest.raises(UserError, match="f:3: characters 7-24 of document 1 are not 'Seizures plus'"):
        list(pubtator.read_pubtator("f", BLANKS + "1\t7\t24\tSeizures plus\tSpecificDisease\tD1\n", sentences=True))


def test_ncbi_diseases_four_types_count_as_one_class(tmp_path):
    kinds = [(0, 5, "Fever", "DiseaseClass"), (7, 15, "Seizures", "Modifier")]
    kinds.append((35, 46, "lung cancer", "SpecificDisease"))
    text = BLANKS + "".join(f"1\t{a}\t{b}\t{m}\t{k}\tD1\n" for a, b, m, k in kinds)
    (tmp_path / "NCBItestset_corpus.txt").write_text(text)
    read = {n: load_task(n, [f"data_dir={tmp_path}"]) for n in ("ncbi_disease_one_class_ner", "ncbi_disease_ner")}
    one, four = ([t for e in task.examples("test") for t in e.gold] for task in read.values())
    assert {t[2:] for t in one} == {"", "Disease"} and [t[:2] for t in one] == [t[:2] for t in four]
    assert {t[2:] for t in four} == {"", "DiseaseClass", "Modifier", "SpecificDisease"}
    task = read["ncbi_disease_ner"]
    golds = [e.gold for e in task.examples("test")]
    wrong = [tuple(t.replace("Modifier", "DiseaseClass") for t in gold) for gold in golds]
    assert task.metrics(golds, wrong)["entity_f1"] == pytest.approx(2 / 3)  # of one class, all three would be right
