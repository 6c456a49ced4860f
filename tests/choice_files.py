"""Small files in the official formats of MedQA, MedMCQA, MMLU, BioASQ and PubMedQA, and lm-eval's documents of them."""

import csv
import json
from pathlib import Path
from random import Random
from typing import Any

from modelzoo.evaluation.official.read import SUBJECTS

# A word may be empty (two blanks in a row) or hold a line break.
PLAIN = "aspirin lowers fever appetite no yes maybe Étude β-blocker does it? 5 mg (x) trailing"
WORDS = [*PLAIN.split(), "", "", "a\nline"]
COUNTS = {"train": 9, "dev": 6, "test": 7}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def words(draw: Random, least: int, most: int) -> str:
    return "q" + " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_medqa(folder: Path, draw: Random) -> dict[str, list[dict]]:
    """`questions/US/4_options/`, next to another country's; gives the hub's documents by split."""
    found = {}
    for split, n in COUNTS.items():
        rows = []
        for _ in range(n):
            options = {letter: words(draw, 1, 5) for letter in "ABCD"}
            letter = draw.choice("ABCD")
            rows.append(
                {"question": words(draw, 4, 20), "answer": options[letter], "options": options, "meta_info": "step1",
                 "answer_idx": letter, "metamap_phrases": []}
            )  # fmt: skip
        write(folder / f"data_clean/questions/US/4_options/phrases_no_exclude_{split}.jsonl", lines(rows))
        write(folder / f"data_clean/questions/US/{split}.jsonl", "not read\n")
        endings = lambda r: {f"ending{i}": r["options"][x] for i, x in enumerate("ABCD")}
        found[split] = [{"sent1": r["question"], **endings(r), "label": "ABCD".index(r["answer_idx"])} for r in rows]
    return found


def write_medmcqa(folder: Path, draw: Random) -> dict[str, list[dict]]:
    found = {}
    for split, n in COUNTS.items():
        rows = []
        for i in range(n):
            options = {f"op{x}": words(draw, 1, 5) for x in "abcd"}
            row = {"question": words(draw, 2, 9), "exp": None, "cop": draw.randint(1, 4), **options}
            row |= {"subject_name": draw.choice(["Dental", "Skin"]), "topic_name": None, "id": f"{split}{i}"}
            rows.append(row)
        found[split] = [{**r, "cop": r["cop"] - 1} for r in rows]
        left = ("cop", "exp") if split == "test" else ()
        write(folder / f"{split}.json", lines([{k: v for k, v in r.items() if k not in left} for r in rows]))
    return found


def write_mmlu(folder: Path, draw: Random) -> dict[str, dict[str, list[dict]]]:
    """`data/{dev,val,test}/SUBJECT_*.csv`; gives the hub's documents by subject and split."""
    found: dict[str, dict[str, list[dict]]] = {}
    for subject in (*SUBJECTS, "virology"):
        for split, n in (("dev", 5), ("val", 2), ("test", 4)):
            path = folder / "data" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            docs = []
            with open(path, "w", newline="", encoding="utf-8") as file:
                for _ in range(n):
                    question, options = words(draw, 3, 12), [words(draw, 1, 4) for _ in range(4)]
                    answer = draw.randrange(4)
                    csv.writer(file, lineterminator="\n").writerow([question, *options, "ABCD"[answer]])
                    docs.append({"question": question, "subject": subject, "choices": options, "answer": answer})
            found.setdefault(subject, {})[split] = docs
    return found


def write_bioasq(folder: Path, draw: Random) -> dict[str, str]:
    """A training file and two golden ones, one question of each in both; gives the yes/no answers by id."""
    answers: dict[str, str] = {}

    def question(i: int, kind: str) -> dict:
        answers[str(i)] = label = draw.choice(["yes", "no"])
        exact = [label, label.capitalize(), [label], label + "."][i % 4]
        found = {"id": str(i), "body": words(draw, 3, 6), "type": kind, "documents": ["http://x"]}
        return found | {"exact_answer": exact, "ideal_answer": ["x"], "snippets": [{"text": words(draw, 1, 30)}] * 2}

    rest = [question(i, "yesno") for i in range(60)]
    golden = [question(i, "yesno") for i in range(60, 66)]
    other = {**question(99, "factoid"), "exact_answer": [["x"]]}
    del answers["99"]
    write(folder / "training13b.json", json.dumps({"questions": [*rest, golden[0], other]}))
    write(folder / "13B1_golden.json", json.dumps({"questions": golden[:3]}))
    write(folder / "13B2_golden.json", json.dumps({"questions": golden[3:]}))
    return answers


def write_pubmedqa(folder: Path, draw: Random) -> dict[str, list[dict]]:
    """The layout of `prepare-task pubmedqa`, much smaller; gives the documents by split."""
    label = lambda: draw.choice(["yes", "no", "maybe"])
    make = lambda: {"QUESTION": words(draw, 4, 9), "CONTEXTS": [words(draw, 5, 25), words(draw, 5, 25)],
                    "LABELS": ["A", "B"], "LONG_ANSWER": words(draw, 5, 15), "final_decision": label()}  # fmt: skip
    questions = {str(i): make() for i in range(sum(COUNTS.values()))}
    ids, parts, begin = list(questions), {}, 0
    for split, n in COUNTS.items():
        parts[split], begin = ids[begin : begin + n], begin + n
    write(folder / "pqal_folds.json", json.dumps({"pqal_fold0": {k: parts[k] for k in ("train", "dev")}}))
    write(folder / "pqal_cv_500.json", json.dumps({i: questions[i] for i in [*parts["train"], *parts["dev"]]}))
    write(folder / "pqal_test_ids.json", json.dumps(parts["test"]))
    write(folder / "test_set.json", json.dumps({i: questions[i] for i in parts["test"]}))
    return {split: [questions[i] for i in part] for split, part in parts.items()}
