"""How others read citations and full texts: pubmed_parser, and lxml with the few lines that people write around it.

Each takes a folder of files and gives one text per record.
"""

import glob
import gzip
import os
import sys


def parse_citations(folder: str) -> list[str]:
    import pubmed_parser

    texts = []
    for path in sorted(glob.glob(os.path.join(folder, "*.xml.gz"))):
        for d in pubmed_parser.parse_medline_xml(
            path,
            year_info_only=False,
            nlm_category=False,
            author_list=False,
            reference_list=False,
            parse_downto_mesh_subterms=False,
        ):
            if d.get("abstract"):
                texts.append(f"{d['title']}\n{d['abstract']}")
    return texts


def parse_articles(folder: str) -> list[str]:
    import pubmed_parser

    texts, failed = [], 0
    for path in sorted(glob.glob(os.path.join(folder, "*.nxml"))):
        try:
            front = pubmed_parser.parse_pubmed_xml(path)
            paragraphs = pubmed_parser.parse_pubmed_paragraph(path, all_paragraph=True)
        except KeyError:  # an article without a year of publication ends it
            failed += 1
            continue
        texts.append("\n".join([front["full_title"], front["abstract"], *(p["text"] for p in paragraphs)]))
    if failed:
        print(f"note       pubmed_parser fails on {failed} articles, which are left out", file=sys.stderr)
    return texts


def iterate_citations(folder: str) -> list[str]:
    from lxml import etree

    texts = []
    for path in sorted(glob.glob(os.path.join(folder, "*.xml.gz"))):
        with gzip.open(path) as f:
            for _, e in etree.iterparse(f, tag="PubmedArticle"):
                title = e.find(".//ArticleTitle")
                parts = ["".join(a.itertext()) for a in e.iterfind(".//Abstract/AbstractText")]
                if parts:
                    texts.append("".join(title.itertext()) + "\n" + "\n".join(parts))
                e.clear()
                while e.getprevious() is not None:
                    del e.getparent()[0]
    return texts


def iterate_articles(folder: str) -> list[str]:
    from lxml import etree

    texts = []
    for path in sorted(glob.glob(os.path.join(folder, "*.nxml"))):
        root = etree.parse(path).getroot()
        parts = root.xpath(".//article-title[not(ancestor::ref-list)] | .//abstract | .//body//p")
        texts.append("\n".join("".join(part.itertext()) for part in parts))
    return texts


READERS = {
    ("parser+HF", "pubmed"): parse_citations,
    ("parser+HF", "pmc"): parse_articles,
    ("lxml+HF", "pubmed"): iterate_citations,
    ("lxml+HF", "pmc"): iterate_articles,
}
