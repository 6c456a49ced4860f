"""`run.py prepare-task NAME SOURCE OUT`: official files as the layout that a bundled task reads.

OUT/SPLIT.jsonl      rows of `form: choice` (pubmedqa: the folds' files of `form: pubmedqa`)
OUT/made_from.json   which files they are of, with their SHA-256, how many rows there are, and what was left out
"""

import json
import os
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.remarks import Remarks
from modelzoo.evaluation.official.archive import Archive
from modelzoo.evaluation.official.pubmedqa_folds import read_pubmedqa
from modelzoo.evaluation.official.read import LAYOUTS, READERS
from modelzoo.files import making_folder, write_text
from modelzoo.reading import exists

NAMES = (*READERS, "pubmedqa")


def prepare_task(name: str, source: str, out: str) -> str:
    """Convert the official files of `name` in `source` (a folder, .zip or tar file) into the new folder `out`.

    Returns:
        What was written.

    Raises:
        UserError: the source is of another layout, a row is not what it should be, or `out` is there.
    """
    if exists(out):
        raise UserError(f"{out}: is there already; remove it, or name another folder")
    archive, remarks = Archive(source), Remarks()
    if name == "pubmedqa":
        values = read_pubmedqa(archive)
        files = {file: json.dumps(value, indent=1) + "\n" for file, value in values.items()}
        counts: dict[str, int] = {file: len(value) for file, value in values.items()}
    else:
        rows = READERS[name](archive, remarks.add)
        if not rows:
            raise UserError(f"{source}: holds none of {name}'s files; it needs {LAYOUTS[name]}")
        _check_ids(source, rows)
        files = {f"{split}.jsonl": "".join(map(_line, part)) for split, part in rows.items()}
        counts = {f"{split}.jsonl": len(part) for split, part in rows.items()}
    facts = {"task": name, "source": os.path.basename(os.path.abspath(source)), "files": archive.hashes, "rows": counts}
    if about := remarks.as_dict():
        facts["remarks"] = about
    with making_folder(out) as folder:
        for file, text in files.items():
            write_text(os.path.join(folder, file), text)
        write_text(os.path.join(folder, "made_from.json"), json.dumps(facts, indent=1) + "\n")
    lines = [f"wrote      {os.path.join(out, file)}: {n:,}" for file, n in counts.items()]
    return "\n".join([*lines, *(f"           {line}" for line in remarks.describe())])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _check_ids(source: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    for split, part in rows.items():
        seen: set[str] = set()
        for row in part:
            if row["id"] in seen:
                raise UserError(f"{source}: {split}: id {row['id'][:80]} occurs twice")
            seen.add(row["id"])
