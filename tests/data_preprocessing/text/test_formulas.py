"""Formulas as running text: MathML, TeX and pictures, and what is next to them."""

import unicodedata

import pytest
from lxml import etree

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import pmc
from data_preprocessing.text.mathml import math_text


def read(body: str) -> list[str]:
    xml = f"<article><front><article-meta/></front><body>{body}</body></article>"
    (document,) = pmc.articles(xml.encode(), "f", "m", TextPolicy())
    return document.text.split("\n")


def math(inner: str) -> str:
    return f"<inline-formula><math>{inner}</math></inline-formula>"


X, PICTURE = math("<mi>x</mi>"), "<inline-formula><inline-graphic/></inline-formula>"


@pytest.mark.parametrize(
    ("mathml", "expected"),
    [
        ("<mmultiscripts><mi>C</mi><mprescripts/><none/><mn>14</mn></mmultiscripts>", "^14C"),
        ("<mmultiscripts><mi>C</mi><mprescripts/><mn>6</mn><mn>14</mn></mmultiscripts>", "^14_6C"),
        ("<mmultiscripts><mi>x</mi><mi>i</mi><mn>2</mn></mmultiscripts>", "x_i^2"),
        ("<mmultiscripts><mi>x</mi><mi>i</mi><none/><mprescripts/><none/><mn>3</mn></mmultiscripts>", "^3x_i"),
        ("<mover><mi>x</mi><mo>¯</mo></mover>", "x\u0304"),
        ("<mover accent='true'><mi>p</mi><mo stretchy='false'>^</mo></mover>", "p\u0302"),
        ("<mover><mi>θ</mi><mo>~</mo></mover>", "θ\u0303"),
        ("<mrow><mover><mi>V</mi><mo>.</mo></mover><msub><mi>O</mi><mn>2</mn></msub></mrow>", "V̇O_2"),
        ("<mover><mi>v</mi><mo>→</mo></mover>", "v\u20d7"),
        ("<mover><mrow><mi>A</mi><mi>B</mi></mrow><mo>¯</mo></mover>", "bar(AB)"),
        ("<mover><msub><mi>β</mi><mn>1</mn></msub><mo>^</mo></mover>", "hat(β_1)"),
        ("<munder><mi>x</mi><mo>_</mo></munder>", "x\u0332"),
        ("<munder><mo>lim</mo><mrow><mi>x</mi><mo>→</mo><mn>0</mn></mrow></munder>", "lim_(x → 0)"),
        ("<mover><mo>∑</mo><mi>n</mi></mover>", "∑^n"),
        ("<mover><mrow><mi>a</mi><mi>b</mi></mrow><mo>⏞</mo></mover>", "ab"),
        ("<mover><mi>x</mi><mrow/></mover>", "x"),
        ("<msup><mover><mi>x</mi><mo>¯</mo></mover><mn>2</mn></msup>", "x\u0304^2"),
        ("<msup><mi>x</mi><mrow/></msup>", "x"),
        ("<msubsup><mi>x</mi><mrow/><mn>2</mn></msubsup>", "x^2"),
    ],
)
def test_scripts_and_accents(mathml, expected):
    assert math_text(etree.fromstring(f"<math>{mathml}</math>")) == expected
    assert read(f"<p>{math(mathml)}</p>") == [unicodedata.normalize("NFC", expected)]


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        (f"where {X}, {X} and {X}.", "where x, x and x."),
        (f"where {X} , so", "where x, so"),
        (f"is{X}and", "is x and"),
        (f"the{X}{X}", "the x x"),
        (f"({X}) and [{X}]", "(x) and [x]"),
        (f"the {X}-axis", "the x-axis"),
        (f"{X} .5", "x .5"),
        (f"p = {X}; p={X}+5; p{math('<mo>=</mo><mn>5</mn>')}", "p = x; p=x+5; p = 5"),
        ("CO" + math("<msub><mi/><mn>2</mn></msub>") + "max", "CO_2 max"),
        (f"of {PICTURE}, and", "of [formula], and"),
        ("so <inline-formula>n = <inline-graphic/></inline-formula>.", "so n = [formula]."),
        ("so <inline-graphic/>.", "so ."),
        ("in <tex-math>$x$</tex-math>.", "in x."),
        ("in " + X + ' [<xref ref-type="bibr">1</xref>].', "in x."),
        ("<math><mi>y</mi></math>, so", "y, so"),
    ],
)
def test_formulas_are_words_of_their_sentence(paragraph, expected):
    assert read(f"<p>{paragraph}</p>") == [expected]


LABELLED = [
    ("<graphic/>", "[formula]"),
    ("<graphic/><graphic/>", "[formula]"),
    ("<alternatives><graphic/></alternatives>", "[formula]"),
    ("<alternatives><graphic/><tex-math>$$a$$</tex-math></alternatives>", "a"),
    ("<alternatives><tex-math>$$a$$</tex-math><math><mi>b</mi></math><graphic/></alternatives>", "b"),
    ("<math><mi>b</mi></math>", "b"),
    ("x<sub>1</sub> = 3", "x1 = 3"),
]


@pytest.mark.parametrize(("formula", "expected"), LABELLED)
@pytest.mark.parametrize("label", ["", "<label>(1)</label>", "<label>Eq. <bold>(1)</bold></label>"])
def test_the_number_of_a_formula_is_no_part_of_it(formula, expected, label):
    for displayed in (
        f"<disp-formula>{label}{formula}</disp-formula>",
        f"<disp-formula>{formula}{label}</disp-formula>",
    ):
        assert read(f"<sec><p>So</p>{displayed}</sec>") == ["So", expected]
        assert " ".join(read(f"<p>So {displayed} it is</p>")) == f"So {expected} it is"
        assert read(f"<disp-formula-group>{displayed}</disp-formula-group>") == [expected]
