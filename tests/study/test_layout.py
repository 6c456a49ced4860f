"""The pages on screens of 420, 768 and 1280 pixels: in a browser where there is one, and by their styles where not."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from data_preprocessing.reports import page as data_page
from data_preprocessing.reports import report as data_report
from modelzoo.study.figures import curves
from modelzoo.study.figures.draw import axes, limit_axis
from modelzoo.study.reports import page
from modelzoo.study.reports.report import write
from modelzoo.study.runs.results import Group, interval, read_run

WIDTHS = (420, 768, 1280)
LONG = "a-name_of_a_run_that_somebody_has_made_rather_long_with_every_setting_in_it_lr=0.0001"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SPLIT = {"documents": 10**9, "tokens": 10**12, "n_examples": 10**9, "loss_tokens": 10**12, "msl": 2048,
         "vocab_size": 50257, "objective": "lm"}  # fmt: skip
FACTS = {
    "job": {"source": "pubmed", "input": "/" + "deep/" * 60, "filters": {"languages": ["eng"]}},
    "manifest": {"records": 10**9, "reasons": {"written": 10**9, "near_duplicate": 5}, "data_sha256": "a" * 64,
                 "splits": {"train": SPLIT, "val": SPLIT}},
    "inputs": {"x" * 200: {"records": 1, "bytes": 10**12, "sha256": "b" * 64}},
    "text_bytes": 10**12,
    "languages": {LONG: 7},
    "licences": {"not told": 1},
    "years": {str(year): year for year in range(1950, 2026)},
    "token_lengths": {str(2**i): i + 1 for i in range(17)},
    "samples": {"written": [{"key": "1", "text": "ACGT" * 200}]},
}  # fmt: skip

MEASURE = """
<body><script>
const pages = %s.map(x => new TextDecoder().decode(Uint8Array.from(atob(x), c => c.charCodeAt(0))));
const frames = [];
for (const [number, text] of pages.entries()) for (const width of %s) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:800px;border:0`;
  frame.srcdoc = text;
  document.body.append(frame);
  frames.push([number, width, frame]);
}
window.onload = () => {
  const found = frames.map(([number, width, frame]) => {
    const inside = frame.contentDocument, root = inside.documentElement;
    inside.querySelectorAll('details').forEach(x => { x.open = true; });
    const sizes = [...inside.querySelectorAll('svg text')].map(x => x.getBoundingClientRect().height);
    const beyond = [...inside.querySelectorAll('body *')].filter(
      x => x.getBoundingClientRect().right > root.clientWidth && !x.parentElement.closest('.scroll, svg'));
    return {beyond: beyond.map(x => x.outerHTML.slice(0, 60)), page: number,
            width: width, visible: root.clientWidth, needed: root.scrollWidth,
            tables: inside.querySelectorAll('table').length, smallest: Math.min(...sizes),
            pictures: Math.max(...[...inside.querySelectorAll('svg')].map(x => x.getBoundingClientRect().right))};
  });
  document.body.innerHTML = '<pre></pre>';
  document.querySelector('pre').textContent = JSON.stringify(found);
};
</script></body>
"""


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> list[str]:
    """The report of runs, of which one group has a long name, and that of preprocessing."""
    path = tmp_path_factory.mktemp("layout") / "r.html"
    of = lambda *names: [read_run(str(runs / name)) for name in names]
    groups = [Group(LONG, of("dense-seed1", "dense-seed2")), Group("rigl", of("rigl-seed1"))]
    write(groups, str(path), LONG)
    return [path.read_text(encoding="utf-8"), data_report.html(FACTS)]


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
def test_no_page_scrolls_sideways_and_letters_can_be_read(pages, tmp_path):
    texts = json.dumps([base64.b64encode(text.encode()).decode() for text in pages])
    (tmp_path / "m.html").write_text(MEASURE % (texts, json.dumps(WIDTHS)), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=4000", "--dump-dom", (tmp_path / "m.html").as_uri()]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    shown = re.search(r"<pre>(.*?)</pre>", out.stdout, re.S)
    if shown is None:
        pytest.skip(f"{BROWSER} shows nothing here: {out.stderr[-200:]}")
    found = json.loads(html.unescape(shown[1]))
    assert len(found) == len(pages) * len(WIDTHS)
    for x in found:
        assert x["needed"] <= x["visible"] <= x["width"] and x["tables"] >= 2, x
        assert x["smallest"] >= 8 and x["pictures"] <= x["width"], x


class Boxes(HTMLParser):
    """For each table the class of the element around it; and what is in the head of the page."""

    def __init__(self, text: str):
        super().__init__()
        self.around, self.tables, self.metas, self.heads = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append(self.around[-1])
        if tag == "meta":
            self.metas.append(dict(attrs))
        if tag == "div":
            self.around.append(dict(attrs).get("class"))

    def handle_endtag(self, tag):
        if tag == "div":
            self.around.pop()


@pytest.mark.parametrize("number", [0, 1])
def test_tables_scroll_in_their_own_boxes_and_pictures_shrink(pages, number):
    found = Boxes(pages[number])
    assert len(found.tables) >= 2 and set(found.tables) == {"scroll"}
    assert any(x.get("name") == "viewport" and "width=device-width" in x["content"] for x in found.metas)
    style = re.sub(r"\s", "", pages[number].split("<style>")[1].split("</style>")[0])
    assert ".scroll{overflow-x:auto" in style
    assert re.search(r"svg\{display:block;width:100%;max-width:\w+;height:auto", style)
    assert {"(prefers-color-scheme:dark)", "print"} <= set(re.findall(r"@media(\([^)]*\)|print)", style))
    assert "color-scheme:lightdark" in style
    assert not re.search(r"https?://(?!www\.w3\.org)", pages[number])


def test_colours_of_the_pages_are_set_for_light_dark_and_paper():
    for style, names in ((page.STYLE, "page ink soft line"), (data_page.STYLE, "paper ink soft line")):
        for name in names.split():
            assert len(re.findall(rf"--{name}:", style)) == 3, name


def test_pictures_next_to_the_page_have_colours_of_their_own(runs, tmp_path):
    """Outside of browsers `var(--c0, ...)` is no colour, and their lines were not drawn."""
    write([Group("rigl", [read_run(str(runs / "rigl-seed1"))])], str(tmp_path / "r.html"), "t")
    pictures = [p.read_text(encoding="utf-8") for p in sorted((tmp_path / "r_files").glob("*.svg"))]
    assert len(pictures) > 2 and not any("var(" in text for text in pictures)
    assert page.LIGHT[0] in pictures[0] and f"var(--c0, {page.LIGHT[0]})" in (tmp_path / "r.html").read_text(
        encoding="utf-8"
    )


def test_heads_are_words_with_units(pages):
    text = pages[0] + pages[1]
    for head in ("validation loss (nats per token)", "95 % interval from", "training FLOPs, counted", "size (MB)",
                 "tokens that count for loss"):  # fmt: skip
        assert f">{head}<" in text


@pytest.mark.parametrize("log", [False, True])
def test_an_interval_of_two_seeds_does_not_stretch_the_axis(log):
    points = [3.50, 3.52, 3.60]
    _, low, high = interval([3.49, 3.55])
    assert high - low > 5 * (points[-1] - points[0])
    _, ((plot,),) = axes()
    said = limit_axis(plot, "y", points, [low, high], log)
    bottom, top = plot.get_ylim()
    assert bottom < 3.50 and top > 3.60 and top - bottom < 2 * 0.1 and "cut" in said
    assert limit_axis(plot, "y", points, [3.51, 3.61], log) == ""
    bottom, top = plot.get_ylim()
    assert bottom < 3.50 and top > 3.61
    assert limit_axis(plot, "y", [float("inf"), 3.0], [3.0], log) == "" and plot.get_ylim()[0] < 3 < plot.get_ylim()[1]


def test_a_single_run_has_no_interval(runs):
    groups = [Group("one", [read_run(str(runs / "dense-seed1"))])]
    (row,) = curves.draw_final_losses(groups).rows
    assert row[2:5] == (None, None, 1)
