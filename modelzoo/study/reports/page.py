"""One HTML file that needs no other: figures inline, numbers behind a link; light, dark and on paper."""

import base64
import csv
import html
import io
import os
from collections.abc import Sequence

from modelzoo.files import write_text
from modelzoo.progress import format_amount
from modelzoo.redact import redact_text
from modelzoo.study.figures.draw import DARK, LIGHT, Panel, fix_colours

_COLOURS = {name: " ".join(f"--c{i}: {c};" for i, c in enumerate(of)) for name, of in (("l", LIGHT), ("d", DARK))}
_LIGHT = f"--page: #ffffff; --ink: #1a1b1c; --soft: #55585c; --faint: #9a9b9c; --line: #d8dadd; {_COLOURS['l']}"
_DARK = f"--page: #15171a; --ink: #e8e9ea; --soft: #a9adb2; --faint: #6d7176; --line: #33373c; {_COLOURS['d']}"
STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .25rem; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .5rem; }}
p, figcaption {{ max-width: 48rem; overflow-wrap: anywhere; }}
h1, h2, nav {{ overflow-wrap: anywhere; }}
.lead, figcaption, footer {{ color: var(--soft); }}
figcaption {{ font-size: .88rem; margin-top: .4rem; }}
figure {{ margin: 0; }}
.scroll {{ overflow-x: auto; }}
figure svg {{ display: block; width: 100%; max-width: 44rem; height: auto; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; min-width: 6.5rem;
  border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 600; vertical-align: bottom; }}
.n {{ text-align: right; white-space: nowrap; min-width: 0; }}
th.n {{ white-space: normal; }}
a {{ color: inherit; }}
nav {{ margin: 1rem 0; font-size: .88rem; columns: 2; }}
@media (max-width: 40rem) {{ nav {{ columns: 1; }} }}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} }}
  body {{ max-width: none; padding: 0; font-size: 10pt; }}
  nav, a[download] {{ display: none; }}
  section {{ break-inside: avoid; }}
  .scroll {{ overflow: visible; }}
  figure svg {{ max-width: 32rem; }}
}}
"""


def write_page(path: str, title: str, lead: str, panels: Sequence[Panel]) -> str:
    """Write the page, and each panel's picture and numbers into a folder next to it, whose name is returned.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = f"{os.path.splitext(path)[0]}_files"
    os.makedirs(folder, exist_ok=True)
    for panel in panels:
        write_text(os.path.join(folder, f"{panel.name}.csv"), _csv(panel))
        if panel.svg is not None:
            write_text(os.path.join(folder, f"{panel.name}.svg"), fix_colours(panel.svg))
    write_text(path, render_page(title, lead, panels))
    return folder


def render_page(title: str, lead: str, panels: Sequence[Panel]) -> str:
    """The page. It loads nothing: no script, no font, no picture from elsewhere."""
    links = "".join(f'<div><a href="#{p.name}">{_escape(p.title)}</a></div>' for p in panels)
    body = "".join(_section(panel) for panel in panels)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{_escape(title)}</h1>\n<p class="lead">{_escape(lead)}</p>\n<nav>{links}</nav>\n{body}'
        "<footer><p>Research software. Not for clinical use.</p></footer>\n</body>\n</html>\n"
    )


def _section(panel: Panel) -> str:
    data = base64.b64encode(_csv(panel).encode()).decode()
    figure = panel.svg or ""
    if figure:
        figure = figure.replace("<svg ", f'<svg role="img" aria-label="{_escape(panel.title)}" ', 1)
    table = _table(panel) if panel.shown else ""
    return (
        f'<section id="{panel.name}">\n<h2>{_escape(panel.title)}</h2>\n<figure>{figure}{table}\n'
        f"<figcaption>{_escape(panel.caption)} "
        f'<a download="{panel.name}.csv" href="data:text/csv;base64,{data}">numbers (CSV)</a></figcaption>'
        "</figure>\n</section>\n"
    )


def _table(panel: Panel) -> str:
    right = [all(isinstance(x, int | float | None) for x in column) for column in zip(*panel.rows, strict=True)]
    line = lambda tag, cells: "".join(
        f"<{tag}{' class=n' * number}>{_escape(cell)}</{tag}>" for number, cell in zip(right, cells, strict=True)
    )
    head = line("th", panel.titles or panel.head)
    rows = "".join(f"<tr>{line('td', map(_cell, row))}</tr>" for row in panel.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'  # a keyboard scrolls what has the focus


def _escape(text: str) -> str:
    """Text for HTML: no markup, no secret."""
    return html.escape(redact_text(text))


def _cell(x: object) -> str:
    if x is None:
        return "-"
    if isinstance(x, float):
        return f"{x:.5g}" if abs(x) < 1e4 else format_amount(x)
    return f"{x:,}" if isinstance(x, int) else str(x)


def _csv(panel: Panel) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(panel.head)
    writer.writerows([_plain(x) for x in row] for row in panel.rows)
    return out.getvalue()


def _plain(x: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(x, str):
        return x
    text = redact_text(x)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and len(text) > 1 else text
