"""A record is found by each of its names: the key as the table has it, and the id or DOI as its source spells it."""

import gzip

import pytest

from data_preprocessing.inspection.record import describe_record
from modelzoo.config.errors import UserError

HEAD = "key\tpmid\tpmcid\treason\tsplit\ttokens\n"
ROWS = {
    "id:a7": "id:a7\t\t\twritten\ttrain\t9\n",
    "doi:10.1000/x": "doi:10.1000/x\t\t\twritten\tval\t8\n",
    "PMC12": "PMC12\t77\tPMC12\twritten\ttrain\t7\n",
    "a b.jsonl:7": "a b.jsonl:7\t\t\tno_text\t\t0\n",
}


@pytest.mark.parametrize(
    "name,key",
    [("a7", "id:a7"), ("id:a7", "id:a7"), ("10.1000/x", "doi:10.1000/x"), ("doi:10.1000/x", "doi:10.1000/x"),
     ("77", "PMC12"), ("PMC12", "PMC12"), ("a b.jsonl:7", "a b.jsonl:7"), ("7", None), ("a", None), ("id:", None)],
)  # fmt: skip
def test_a_record_has_the_names_of_its_source(tmp_path, name, key):
    (tmp_path / "documents").mkdir()
    with gzip.open(tmp_path / "documents" / "00000.tsv.gz", "wt", encoding="utf-8") as file:
        file.write(HEAD + "".join(ROWS.values()))
    if key is None:
        with pytest.raises(UserError, match="no key, PMID, PMCID, id or DOI of a record"):
            describe_record(str(tmp_path), name)
    else:
        assert describe_record(str(tmp_path), name).startswith(f"{key} in documents/00000.tsv.gz")
