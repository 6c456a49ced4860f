"""In-text citations: of every style what is read, and no trace of those that are taken out."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import pmc


def read(paragraph: str, **policy) -> str:
    """The paragraph's text; <1>, <Li, 2001> and the like stand for <xref ref-type="bibr">."""
    paragraph = re.sub(
        r"<([^/<>a-z]|[A-Z][^<>]*|[^<>]*\d[^<>]*|b|in press)>", r'<xref ref-type="bibr">\1</xref>', paragraph
    )
    xml = f"<article><front><article-meta/></front><body><p>{paragraph}</p></body></article>"
    (document,) = pmc.articles(xml.encode(), "f", "m", TextPolicy(**policy))
    return document.text


NUMBERED = {
    "seen [<1>].": "seen.",
    "seen [<1>, <2>; <3>–<5>] before.": "seen before.",
    "seen [<1>–3, <5>].": "seen.",
    "seen [1–<3>].": "seen.",
    "seen <[1]>, <[2]> before.": "seen before.",
    "seen (<1>)(<2>).": "seen.",
    "seen <[1>–<3]>.": "seen.",
    "seen <sup><1>,<2></sup>.": "seen.",
    "seen.<sup><1>–3</sup> Then": "seen. Then",
    "seen.<sup>[<1>]</sup> Then": "seen. Then",
    "seen,<1>,<2>,<3>. Then": "seen. Then",
    "seen.<30 31> Then": "seen. Then",
    "seen<1> and<2>, too": "seen, too",
    "seen by Li et al. [<1>]. Then": "seen by Li et al. Then",
    "seen by Li et al. [<1>] in mice": "seen by Li et al. in mice",
    "seen (refs. <1>, <2>).": "seen.",
    "seen (see [<4>]).": "seen.",
    "seen [see also (<4>, <5>) for a review].": "seen.",
    "seen (e.g., [<4>–<6>]) often.": "seen often.",
    "seen ([<4>], pp. 9–12).": "seen.",
    "seen [<4>••, <5>•].": "seen.",
    "seen (TTM; [<4>]).": "seen (TTM).",
    "seen (TTM; see also [<4>]).": "seen (TTM).",
    "seen (Table 2 and [<4>]).": "seen (Table 2).",
    "seen (mice [<4>], rats [<5>]).": "seen (mice, rats).",
    "seen [<1>; and data unpublished].": "seen [data unpublished].",
    "seen (<1>, unpublished data, <2>).": "seen (unpublished data).",
    "seen ([<1>], http://a.b).": "seen (http://a.b).",
    "both[<7>]Early": "both Early",
    "end [<7>]. [<8>]": "end.",
    "seen (AS [<4>]) and EG [<5>].": "seen (AS) and EG.",
    "seen (CI or OR [<4>]), OR [<5>].": "seen (CI or OR), OR.",
    "seen (IE [<4>], A [<5>]).": "seen (IE, A).",
    "seen in 2003 [<11>].": "seen in 2003.",
    "the trial (<1990>–<1991>)": "the trial (1990–1991)",
}
NEEDED = {
    "reviewed in [<26>]. Then": "reviewed in [26]. Then",
    "reviewed in <26>.": "reviewed in [26].",
    "by [<31>] and [<32>] too": "by [31] and [32] too",
    "method of ref. <9>, but": "method of ref. 9, but",
    "as in<sup><4>,<5></sup>.": "as in [4,5].",
    "It ended. [<12>] shows more.": "It ended. [12] shows more.",
    "[<12>] shows more.": "[12] shows more.",
    "(see [<4>] on mice)": "(see [4] on mice)",
}
AUTHOR_YEAR = {
    "rising (FAO, <2018>) and": "rising (FAO, 2018) and",
    "known (Li et al., <2010>; Ma, <2011a>,<b>).": "known (Li et al., 2010; Ma, 2011a,b).",
    "known (e.g., Li, <2010>; see also Ma <2011a, b>).": "known (e.g., Li, 2010; see also Ma 2011a, b).",
    "Li et al. (<1977>) know": "Li et al. (1977) know",
    "Li (<2010>, <in press>) knows": "Li (2010, in press) knows",
    "As <Li (2001)> says.": "As Li (2001) says.",
    "so (<Li et al., 2001>; <Ma, 2002>) it is.": "so it is.",
    "so (<Li, 2001>, <2002>) it is.": "so it is.",
    "so (<Li>, 2001; <Ma> 2002) it is.": "so it is.",
    "so (see <Li, 2001>, for mice).": "so (see Li, 2001, for mice).",
    "so [<Li, 2001>; unpublished].": "so [Li, 2001; unpublished].",
    "in (<Li, 2001>).": "in (Li, 2001).",
}


@pytest.mark.parametrize(("paragraph", "expected"), [*NUMBERED.items(), *NEEDED.items(), *AUTHOR_YEAR.items()])
def test_citations_read_as_people_do(paragraph, expected):
    assert read(paragraph) == expected


@pytest.mark.parametrize("paragraph", [*NUMBERED, *NEEDED, *AUTHOR_YEAR])
def test_kept_citations_are_the_text_as_it_is(paragraph):
    plain = " ".join(re.sub("<[^<>]*?(sup)?>", lambda m: "" if m[1] else m[0][1:-1], paragraph).split())
    assert read(paragraph, citations="keep") == plain


def test_other_names_of_the_same_reference_type():
    paragraph = (
        "seen [<xref ref-type='ref'>1</xref>, <xref>2</xref>]; <xref>Fig. 3</xref> and <xref ref-type='fig'>4</xref>"
    )
    assert read(paragraph) == "seen; Fig. 3 and 4"


words = st.lists(st.sampled_from(["alpha", "beta", "mice", "rats", "were", "found"]), min_size=2, max_size=5).flatmap(
    lambda few: st.sampled_from([1, 1, 40]).map(lambda times: " ".join(few * times))
)
number = st.integers(1, 999).map("<{}>".format)
series = st.lists(number, min_size=1, max_size=4).flatmap(
    lambda numbers: st.sampled_from([", ", ",", "; ", "–", " and ", " "]).map(lambda between: between.join(numbers))
)
numbered = st.tuples(
    st.sampled_from(
        [
            " [{}]",
            "[{}]",
            " ({})",
            "<sup>{}</sup>",
            "<sup>[{}]</sup>",
            " (see [{}])",
            " [e.g., {}]",
            " (refs. {})",
            " [{}, p. 7]",
        ]
    ),
    series,
).map(lambda pair: (pair[0].format(pair[1]), ""))
named = st.sampled_from([" (<Li et al., 2001>)", " [<Li, 2001>; <Ma &amp; Wu, 2002b>]", " (see <Li 2001>)"]).map(
    lambda c: (c, "")
)
by_year = st.sampled_from(
    [
        (" (Li, <2010>)", " (Li, 2010)"),
        (" (e.g., Li et al., <2010a>,<b>)", " (e.g., Li et al., 2010a,b)"),
        (" as Ma (<1999>)", " as Ma (1999)"),
    ]
)
mixed = series.map(lambda s: (f" [{s}; and data unpublished]", " [data unpublished]"))
clauses = st.lists(
    st.tuples(
        words,
        st.one_of(numbered, named, by_year, mixed, st.just(("", ""))),
        st.sampled_from([", ", ". Then ", "; ", " "]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(clauses)
def test_what_is_left_is_what_the_writer_put_around_the_citations(clauses):
    """Each clause is written with its citation, and once more without it: that is the reference."""
    written = "".join(text + citation + end for text, (citation, _), end in clauses)
    expected = "".join(text + left + end for text, (_, left), end in clauses)
    assert read(written + "end.") == expected + "end."
