"""A made-up MEDLINE corpus: right format, invented content, labelled SYNTHETIC in every title and journal.

The abstracts come from a small invented world that stays the same from record to record: drugs have a class by the
end of their name, a class has a target, a mechanism and a typical harm, and whether it helps in a disease is fixed.
So there is something to learn near (grammar, agreement), far (the conclusion follows from the aim and the numbers)
and by heart (which drug does what): enough for models of different size or sparsity to differ.
"""

import gzip
import os
import random
import shlex
from xml.sax.saxutils import escape

from modelzoo.config.errors import UserError
from modelzoo.files import remove_temporaries, replacing

CLASSES = (  # (ending, class, target, action, harm)
    ("mab", "monoclonal antibody", "the interleukin-{g} receptor", "blocks", "infusion reactions"),
    ("tinib", "kinase inhibitor", "the {g} kinase", "inhibits", "rash and diarrhoea"),
    ("pril", "converting enzyme inhibitor", "converting enzyme {g}", "inhibits", "dry cough"),
    ("olol", "beta-blocker", "the beta-{g} adrenoceptor", "antagonises", "bradycardia"),
    ("statin", "reductase inhibitor", "reductase {g}", "inhibits", "myalgia"),
    ("gliptin", "peptidase inhibitor", "dipeptidyl peptidase {g}", "inhibits", "nasopharyngitis"),
    ("vir", "antiviral agent", "the {g} polymerase", "suppresses", "nausea"),
    ("azole", "antifungal agent", "demethylase {g}", "blocks", "raised liver enzymes"),
)
ORGANS = (
    "renal",
    "hepatic",
    "cardiac",
    "pulmonary",
    "cutaneous",
    "gastric",
    "retinal",
    "synovial",
    "cerebral",
    "colonic",
)
PROCESSES = ("fibrosis", "ischaemia", "carcinoma", "neuropathy", "vasculitis", "hypertension", "dystrophy", "sclerosis")
OUTCOMES = (
    "progression-free survival",
    "symptom score",
    "relapse rate",
    "hospital stay",
    "exercise capacity",
    "plasma creatinine",
    "lesion volume",
    "quality of life",
)
LOWER_IS_BETTER = ("relapse rate", "hospital stay", "plasma creatinine", "lesion volume", "symptom score")
SYLLABLES = ("ba", "cor", "di", "fen", "gal", "lo", "mi", "nor", "pra", "quin", "ro", "sel", "ta", "ven", "xi", "zo")
DESIGNS = (
    ("randomised, double-blind trial", "were randomly assigned to receive"),
    ("open-label trial", "were allocated to"),
    ("retrospective cohort study", "had been treated with"),
    ("crossover study", "received in random order"),
)


def world(seed: int) -> dict:
    """Drugs, diseases and the fixed facts about them."""
    rng = random.Random(f"world {seed}")
    names = sorted({"".join(rng.sample(SYLLABLES, 2)) for _ in range(400)})
    rng.shuffle(names)
    drugs = []
    for i, stem in enumerate(names[:120]):
        ending, kind, target, action, harm = CLASSES[i % len(CLASSES)]
        gene = rng.choice("ABCDEFGHKLMNPRST") + rng.choice("ABDEGKLNPRST") + str(rng.randint(1, 9))
        drugs.append(
            {
                "name": stem + ending,
                "kind": kind,
                "target": target.format(g=gene),
                "gene": gene,
                "action": action,
                "harm": harm,
                "dose": rng.choice((5, 10, 20, 40, 50, 100, 200)),
                "class": i % len(CLASSES),
            }
        )
    diseases = [f"{o} {p}" for o in ORGANS for p in PROCESSES]
    # A class helps in about half of the diseases, but one drug in eight goes against its class: to be learnt by heart.
    helps = {(c, d): rng.random() < 0.5 for c in range(len(CLASSES)) for d in diseases}
    contrary = {(d["name"], x): rng.random() < 0.125 for d in drugs for x in diseases}
    return {"drugs": drugs, "diseases": diseases, "helps": helps, "contrary": contrary}


def article(rng: random.Random, facts: dict) -> tuple[str, list[tuple[str, str]]]:
    """(title, [(label, text)]) of one record; labels are empty for an unstructured abstract."""
    drug, other = rng.sample(facts["drugs"], 2)
    disease, outcome = rng.choice(facts["diseases"]), rng.choice(OUTCOMES)
    works = facts["helps"][drug["class"], disease] != facts["contrary"][drug["name"], disease]
    design, assigned = rng.choice(DESIGNS)
    n = rng.randrange(20, 400, 2)
    weeks = rng.choice((4, 6, 8, 12, 24, 52))
    low = rng.randint(12, 60)
    high = low + rng.randint(8, 30)
    p = rng.choice(("0.001", "0.002", "0.01", "0.03")) if works else rng.choice(("0.21", "0.38", "0.47", "0.64"))
    down = outcome in LOWER_IS_BETTER
    mine, theirs = ((low, high) if down else (high, low)) if works else (low, low + rng.choice((0, 1)))
    verb = ("reduced" if down else "improved") if works else "did not change"
    comparator = rng.choice(("placebo", other["name"]))
    title = rng.choice(
        (
            f"Effect of {drug['name']} on {outcome} in patients with {disease}",
            f"{drug['name'].capitalize()} versus {comparator} in {disease}: a {design}",
            f"Does {drug['name']} improve outcomes in {disease}?",
        )
    )
    background = (
        f"{drug['name'].capitalize()} is a {drug['kind']} that {drug['action']} {drug['target']}. "
        + rng.choice(
            (
                f"Its value in {disease} is uncertain.",
                f"Signalling through {drug['gene']} has been implicated in {disease}.",
                f"We studied its effect on {outcome} in {disease}.",
            )
        )
    )
    methods = (
        f"In this {design}, {n} patients with {disease} {assigned} {drug['name']} {drug['dose']} mg daily "
        f"(n = {n // 2}) "
        f"or {comparator} (n = {n - n // 2}) for {weeks} weeks. The primary end point was {outcome} at week {weeks}."
    )
    results = (
        f"At week {weeks}, {drug['name']} {verb} {outcome} compared with {comparator} ({mine} vs {theirs}; p = {p}). "
        f"The most frequent adverse events with {drug['name']} were {drug['harm']}, reported by "
        f"{rng.randint(2, max(3, n // 4))} of {n // 2} patients."
    )
    conclusions = f"{drug['name'].capitalize()} {drug['dose']} mg daily " + (
        f"{verb} {outcome} in patients with {disease} and may be considered where {drug['target']} is active."
        if works
        else f"had no effect on {outcome} in patients with {disease}; inhibition of {drug['gene']} "
        "does not appear to be of benefit."
    )
    labels = ("BACKGROUND", "METHODS", "RESULTS", "CONCLUSIONS") if rng.random() < 0.6 else ("", "", "", "")
    return title, list(zip(labels, (background, methods, results, conclusions), strict=True))


def record(pmid: int, year: int, title: str, parts: list[tuple[str, str]]) -> str:
    """One PubmedArticle."""
    labelled = bool(parts[0][0])
    texts = [
        (f'<AbstractText Label="{a}" NlmCategory="{a}">' if labelled else "<AbstractText>")
        + escape(t)
        + "</AbstractText>"
        for a, t in (parts if labelled else [("", " ".join(t for _, t in parts))])
    ]
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{pmid}</PMID>'
        f"<DateRevised><Year>{year}</Year><Month>06</Month><Day>15</Day></DateRevised>"
        '<Article PubModel="Print"><Journal><JournalIssue CitedMedium="Internet"><PubDate>'
        f"<Year>{year}</Year></PubDate></JournalIssue><Title>SYNTHETIC Journal of Invented Medicine</Title></Journal>"
        f"<ArticleTitle>[SYNTHETIC] {escape(title)}</ArticleTitle><Abstract>{''.join(texts)}</Abstract>"
        '<Language>eng</Language><PublicationTypeList><PublicationType UI="D016428">Journal Article</PublicationType>'
        "</PublicationTypeList></Article></MedlineCitation><PubmedData><PublicationStatus>ppublish</PublicationStatus>"
        f'<ArticleIdList><ArticleId IdType="pubmed">{pmid}</ArticleId></ArticleIdList></PubmedData></PubmedArticle>\n'
    )


def write(folder: str, documents: int, seed: int, files: int) -> list[str]:
    """Write `documents` records over `files` files; the same arguments give the same bytes. Returns the paths."""
    if documents < 1 or files < 1:
        raise UserError("--documents and --files must be at least 1")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder}: cannot be made: {e.strerror}") from None
    if stray := [n for n in os.listdir(folder) if not n.lstrip(".").startswith("SYNTHETIC_")]:
        raise UserError(
            f"{folder}: holds other files ({stray[0]}); give an empty folder, so that made-up records stay apart"
        )
    remove_temporaries(folder)
    facts, rng, paths = world(seed), random.Random(f"articles {seed}"), []
    for k in range(files):
        count = documents * (k + 1) // files - documents * k // files
        first = 900_000_000 + documents * k // files  # far above any real PMID
        body = "".join(record(first + i, rng.randint(1975, 2024), *article(rng, facts)) for i in range(count))
        text = (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            "<!-- SYNTHETIC records, invented by a program; not medical literature -->\n"
            f"<PubmedArticleSet>\n{body}</PubmedArticleSet>\n"
        )
        path = os.path.join(folder, f"SYNTHETIC_{k + 1:04d}.xml.gz")
        with (
            replacing(path) as temporary,
            open(temporary, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as f,
        ):
            f.write(text.encode())
        paths.append(path)
    return paths


def run(args) -> int:
    """Run the verb `synthetic`; returns the exit code."""
    paths = write(args.output, args.documents, args.seed, args.files)
    print(
        f"{args.output}: {args.documents:,} SYNTHETIC records in {len(paths)} files "
        f"({sum(map(os.path.getsize, paths)) / 1e6:.1f} MB); invented, for trying things out only"
    )
    command = ["pubmed", "--input", args.output, "--output", "shards", "--vocab_size", "4096", "--msl", "128"]
    print(f"next: python -m data_preprocessing {shlex.join(command)}")
    return 0
