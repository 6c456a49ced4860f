"""A page in one file: its style for screens of any width, light and dark, and for paper; its tables."""

STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#5b6b7b;--line:#d9e0e7;--bar:#2f7d8c;--drop:#b5532a;--paper:#fff;
--wash:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9aa9b7;--line:#33404d;--bar:#57b0c0;--drop:#e08a5e;
--paper:#141b22;--wash:#1c252e}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:64rem;margin:2rem auto;
padding:0 1rem}h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p.sub{color:var(--soft);margin:0 0 1.2rem}.cards{display:flex;flex-wrap:wrap;gap:.8rem}
.card{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:.6rem .9rem;min-width:8rem}
.card b{display:block;overflow-wrap:anywhere;font-size:1.25rem}.card span{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .5rem;
border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}
th.n{white-space:normal}
td.b{width:45%}.bar{background:var(--drop);height:.8rem;border-radius:2px;min-width:1px}.bar.kept{background:var(--bar)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:0 2rem}
.two>div{min-width:0}
.sample{background:var(--wash);border-left:3px solid var(--drop);padding:.4rem .7rem;margin:.4rem 0;
white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem}.sample.kept{border-color:var(--bar)}
.sample b{color:var(--soft);font-weight:500}
h1,h2,p,li,pre,summary{overflow-wrap:anywhere}th{color:var(--soft);font-weight:600;vertical-align:bottom}
code{overflow-wrap:anywhere;font-size:.85em}.scroll{overflow-x:auto}td.w{min-width:9rem}
svg{display:block;width:100%;max-width:44rem;height:auto}svg text{fill:var(--soft);font-size:12px}
svg rect{fill:var(--bar)}
@media(max-width:40rem){.two{grid-template-columns:1fr}.card{flex:1 1 40%;min-width:7rem}td.b{min-width:6rem}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--bar:#2f7d8c;--drop:#b5532a;--paper:#fff;
--wash:#f5f7f9}body{max-width:none;margin:0;padding:0;font-size:10pt}.scroll{overflow:visible}svg{max-width:32rem}h2{break-after:avoid}
.bar,svg rect{print-color-adjust:exact;-webkit-print-color-adjust:exact}.sample,.card,svg,tr{break-inside:avoid}}
"""


def make_page(title: str, body: list[str]) -> str:
    """A whole page in one file."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,"
        f"initial-scale=1'><title>{title}</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def make_table(rows: list[str]) -> str:
    """A table that scrolls within its own box, where the page is narrower."""
    return f"<div class=scroll tabindex=0><table>{''.join(rows)}</table></div>"
