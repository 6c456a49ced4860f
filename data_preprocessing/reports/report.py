"""report.html: one file, no scripts from elsewhere, opens without a network."""

import html as escape_html
import os
from typing import Annotated, Any

from pydantic import Field

from data_preprocessing.reports.lengths import EDGES
from data_preprocessing.reports.page import make_page, make_table
from modelzoo.folders import add_kind
from modelzoo.records import Record, check_record, read_json

BARS = 40  # years that have a bar each

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Counts = dict[str, _Count]
_Year = Annotated[str, Field(pattern=r"^-?[0-9]{1,6}$")]


class _Split(Record):
    documents: _Count
    tokens: _Count
    n_examples: _Count
    loss_tokens: _Count
    msl: _Count
    vocab_size: _Count
    objective: str


class _Manifest(Record):
    records: _Count
    reasons: _Counts
    splits: Annotated[dict[str, _Split], Field(min_length=1)]
    data_sha256: str


class _Job(Record):
    source: str


class _Input(Record):
    records: _Count
    bytes: _Count
    sha256: str


class _Sample(Record):
    key: str
    text: str


class _Facts(Record):
    """What report.json must hold for the page to be made of it."""

    job: _Job
    manifest: _Manifest
    inputs: dict[str, _Input]
    text_bytes: _Count
    passed_over: _Counts = Field(default_factory=dict)  # older reports have none
    languages: _Counts
    licences: _Counts
    years: dict[_Year, _Count]
    token_lengths: _Counts
    samples: dict[str, list[_Sample]]


def read_facts(path: str) -> dict[str, Any]:
    """The facts that `finish` gathered, from report.json.

    Raises:
        UserError: it is missing, or a key of it has no value that fits.
    """
    facts = read_json(path, add_kind("missing; it is written at the end of a job", os.path.dirname(path) or "."))
    check_record(facts, _Facts, path, "is not a report of this version")
    return facts


_WORDS = {
    "written": "written to shards",
    "superseded": "a newer version of the record is there",
    "deleted": "NLM ordered the deletion",
    "retracted": "the article is retracted",
    "retraction_notice": "a notice of retraction",
    "concern": "an expression of concern",
    "erratum": "a published erratum",
    "corrected": "an erratum corrects it",
    "comment": "a comment on another article",
    "unreadable": "broken, or not of the form that its kind has",
    "no_text": "neither title nor abstract",
    "no_abstract": "a title alone",
    "too_short": "fewer characters than min_chars",
    "too_long": "more characters than max_chars, or a pair that does not fit",
    "language": "not in the languages asked for",
    "licence": "not under the licences asked for",
    "boilerplate": "a standing phrase instead of an abstract",
    "benchmark_pmid": "a document of a test set",
    "benchmark_overlap": "shares a long word sequence with a test set",
    "exact_duplicate": "the same text came before",
    "near_duplicate": "nearly the same text came before",
}


def explain_reason(reason: str) -> str:
    """An outcome in words."""
    return _WORDS.get(reason, "a reason of another version")


def html(facts: dict) -> str:
    """The page for what `finish` gathered."""
    manifest = facts["manifest"]
    splits, reasons, records = manifest["splits"], manifest["reasons"], manifest["records"]
    kept = reasons.get("written", 0)
    tokens = sum(s["tokens"] for s in splits.values())
    first = next(iter(splits.values()))
    cards = [
        ("records read", f"{records:,}"),
        ("documents written", f"{kept:,}"),
        ("dropped", f"{records - kept:,} ({100 * (records - kept) / max(records, 1):.1f} %)"),
        ("tokens", f"{tokens:,}"),
        ("tokens per document", f"{tokens / max(kept, 1):,.0f}"),
        ("text kept before deduplication", f"{facts['text_bytes'] / 1e6:,.1f} MB"),
        ("sequence length", f"{first['msl']:,}"),
        ("vocabulary", f"{first['vocab_size']:,}"),
    ]
    body = [
        "<h1>What became of every record</h1>",
        f"<p class=sub>{_e(facts['job']['source'])} · {len(facts['inputs']):,} input files · objective "
        f"{_e(first['objective'])} · data <code>{_e(manifest['data_sha256'][:16])}</code></p>",
        "<div class=cards>"
        + "".join(f"<div class=card><b>{_e(v)}</b><span>{_e(k)}</span></div>" for k, v in cards)
        + "</div>",
        "<h2>Records by outcome</h2>",
        _reasons(reasons, records),
        "<h2>Splits</h2>",
        _splits(splits),
        "<h2>Document length in tokens</h2>",
        _histogram(_lengths(facts["token_lengths"]), "tokens a document, at least"),
        "<h2>Publication year of what was written</h2>",
        _histogram(*_years(facts["years"]), facts["years"].get("0", 0)),
        "<div class=two><div><h2>Languages</h2>",
        _top(facts["languages"], "language", kept),
        "</div><div><h2>Licences</h2>",
        _top(facts["licences"], "licence", kept),
        "</div></div>",
        "<h2>Samples: the first of each outcome, in file order</h2>",
        _samples(facts["samples"]),
        "<h2>Inputs</h2>",
        f"<p class=sub>{_e(show_passed(facts.get('passed_over', {})))}</p>",
        _inputs(facts["inputs"]),
        "<h2>Settings</h2>",
        f"<pre class='sample kept'>{_e(_settings(facts['job']))}</pre>",
    ]
    return make_page("Preprocessing report", body)


def _known_first(reasons: dict[str, Any]) -> list[str]:
    """Reasons in the order of the report; those of another version come last."""
    return [reason for reason in _WORDS if reason in reasons] + sorted(reasons.keys() - _WORDS.keys())


def _e(value: object) -> str:
    return escape_html.escape(str(value))


def _reasons(reasons: dict[str, int], records: int) -> str:
    most = max(reasons.values(), default=1)
    rows = [
        f"<tr><td>{_e(r)}<td class=w>{_e(_WORDS.get(r, ''))}<td class=n>{n:,}"
        f"<td class=n>{100 * n / max(records, 1):.2f} %"
        "<td class=b>"
        f"<div class='bar{' kept' if r == 'written' else ''}' style='width:{100 * n / most:.2f}%'></div>"
        for r in _known_first(reasons)
        if (n := reasons[r])
    ]
    head = "<tr><th>outcome<th>what it means<th class=n>records<th class=n>share<th>"
    total = f"<tr><th>in<th>= written + dropped<th class=n>{sum(reasons.values()):,}<th class=n>100 %<th>"
    return make_table([head, *rows, total])


def _splits(splits: dict) -> str:
    titles = ("documents", "tokens", "examples (sequences)", "tokens that count for loss", "of all places")
    head = "<tr><th>split" + "".join(f"<th class=n>{t}" for t in titles)
    rows = [
        f"<tr><td>{_e(name)}<td class=n>{s['documents']:,}<td class=n>{s['tokens']:,}<td class=n>{s['n_examples']:,}"
        f"<td class=n>{s['loss_tokens']:,}<td class=n>"
        f"{100 * s['loss_tokens'] / max(s['n_examples'] * s['msl'], 1):.1f} %"
        for name, s in splits.items()
    ]
    return make_table([head, *rows])


def _years(years: dict[str, int]) -> tuple[dict[str, int], str]:
    """By year, or by decade where the years are too many for bars, those without a document too; and a title."""
    dated = {int(y): n for y, n in years.items() if int(y)}
    if not dated:
        return {}, "year of publication"
    step = 1
    while max(dated) // step - min(dated) // step >= BARS:
        step *= 10
    bins = dict.fromkeys(range(min(dated) // step, max(dated) // step + 1), 0)
    for year, n in dated.items():
        bins[year // step] += n
    title = "year of publication" if step == 1 else f"year of publication, each bar the {step} years from it on"
    return {str(bin * step): n for bin, n in bins.items()}, title


def _lengths(bins: dict[str, int]) -> dict[str, int]:
    """By half octaves from the shortest to the longest, those without a document too."""
    edges = [str(edge) for edge in EDGES]
    found = [k for k, edge in enumerate(edges) if edge in bins]
    if not found or len(found) < len(bins):  # those of another version
        return bins
    return {edge: bins.get(edge, 0) for edge in edges[found[0] : found[-1] + 1]}


def _histogram(bins: dict[str, int], title: str, unknown: int = 0) -> str:
    note = f"; unknown: {unknown:,}" if unknown else ""
    if not bins:
        return f"<p class=sub>nothing to show{note}</p>"
    width, height, most = 460, 130, max(*bins.values(), 1)
    step = width / len(bins)
    every = -(-len(bins) // 9)  # so that labels have room
    parts = []
    for i, (label, n) in enumerate(bins.items()):
        tall = height * n / most
        parts.append(
            f"<rect x='{i * step + 1:.1f}' y='{height + 18 - tall:.1f}' width='{max(step - 2, 1):.1f}' "
            f"height='{tall:.1f}'><title>{_e(label)}: {n:,}</title></rect>"
        )
        if i % every == 0:
            parts.append(f"<text x='{(i + 0.5) * step:.1f}' y='{height + 32}' text-anchor='middle'>{_e(label)}</text>")
    parts.append(f"<text x='{width / 2}' y='{height + 50}' text-anchor='middle'>{_e(title)}</text>")
    head = f"<svg viewBox='0 0 {width} {height + 56}' role=img aria-label='{_e(title)}'>"
    return f"{head}<text x=0 y=11>documents: {most:,} in the tallest bar{note}</text>{''.join(parts)}</svg>"


def _top(counts: dict[str, int], title: str, kept: int, limit: int = 12) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [f"<tr><td>{_e(name)}<td class=n>{n:,}" for name, n in ranked[:limit]]
    if len(ranked) > limit:
        rows.append(f"<tr><td>{len(ranked) - limit} others<td class=n>{sum(n for _, n in ranked[limit:]):,}")
    population = "documents" if sum(counts.values()) == kept else "records read"  # which older versions counted
    return make_table([f"<tr><th>{title}<th class=n>{population}", *rows])


def _samples(samples: dict[str, list[dict]]) -> str:
    parts = []
    for reason in _known_first(samples):
        for sample in samples[reason][:3]:
            parts.append(
                f"<div class='sample{' kept' if reason == 'written' else ''}'>"
                f"<b>{_e(reason)} · {_e(sample['key'])}</b>\n"
                f"{_e(sample['text']) or '(empty)'}</div>"
            )
    return "".join(parts)


def _inputs(inputs: dict[str, dict]) -> str:
    rows = [
        f"<tr><td>{_e(name)}<td class=n>{f['records']:,}<td class=n>{f['bytes'] / 1e6:,.2f}"
        f"<td><code>{_e(f['sha256'][:16])}</code>"
        for name, f in list(inputs.items())[:200]
    ]
    rest = f"<tr><td>and {len(inputs) - 200:,} more (report.json lists all)" if len(inputs) > 200 else ""
    head = "<tr><th>file<th class=n>records<th class=n>size (MB)<th>SHA-256, its first 16 digits"
    return f"<details><summary>{len(inputs):,} files</summary>{make_table([head, *rows, rest])}</details>"


def _settings(job: dict, indent: int = 0) -> str:
    lines = []
    for key, value in job.items():
        if isinstance(value, dict):
            lines += [f"{' ' * indent}{key}:", _settings(value, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{key}: {value}")
    return "\n".join(lines)


def show_passed(passed: dict[str, int]) -> str:
    """What was not read, in words: `passed over: hidden 2, other names 1`; "" for nothing."""
    return f"passed over: {', '.join(f'{kind} {n:,}' for kind, n in passed.items())}" if passed else ""


def text(facts: dict) -> str:
    """The counts as lines."""
    manifest = facts["manifest"]
    reasons = manifest["reasons"]
    lines = [f"{manifest['records']:>12,}  records read"]
    lines += [f"{reasons[r]:>12,}  {r:<18} {_WORDS.get(r, '')}" for r in _known_first(reasons)]
    for name, s in manifest["splits"].items():
        lines.append(
            f"{name:>12}  {s['documents']:,} documents, {s['tokens']:,} tokens, "
            f"{s['n_examples']:,} examples of {s['msl']:,}"
        )
    if passed := show_passed(facts.get("passed_over", {})):
        lines.append(passed)
    return "\n".join(lines)
