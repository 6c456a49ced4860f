"""Named attacks by what is read: entities, bombs, escapes, pickles, codecs, tags, special files, long matches."""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.artefacts import documents
from tests.faults.check import run_main, snapshot, strayed, weigh
from tests.faults.kinds_data import run_and_compare
from tests.faults.kinds_model import STEP, seal
from tests.faults.mutate_hdf5 import edit
from tests.faults.mutate_safetensors import join, split
from tests.faults.mutate_tar import joined, pack
from tests.faults.part import Verdict
from tests.faults.world import World

SECRET = "CANARY-7f3a91"
Attack = Callable[[World, Path], Verdict]
ATTACKS: dict[str, Attack] = {}


def _refused(verdict: Verdict) -> Verdict:
    """An attack that a command takes is a silent one."""
    return Verdict("silent", "taken, exit code 0") if verdict.kind == "ok" else verdict


def _read(source: str, name: str, make: Callable[[World], bytes], must_refuse: bool = True) -> Attack:
    """Documents of one hostile file: refused (or at least harmless), and nothing of another file in the text."""

    def attack(world: World, folder: Path) -> Verdict:
        (folder / "secret.txt").write_text(SECRET)
        (folder / name).write_bytes(make(world).replace(b"{secret}", str(folder / "secret.txt").encode()))
        before = snapshot(folder)
        outcome = run_main("data_preprocessing", [source, "--input", name, "--output", "out", *world.job_flags], folder)
        verdict = weigh(outcome, (name,))
        if path := strayed(before, snapshot(folder), ("out",)):
            return Verdict("outside", f"{path} was changed")
        if any(SECRET.encode() in p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "secret.txt"):
            return Verdict("outside", "another file's text was read")
        counted = "(unreadable 1)" in outcome.out and "0 written" in outcome.out  # not taken, and said so
        return _refused(verdict) if must_refuse and not counted else verdict

    return attack


def _record(title: str = "T", pmid: str = "<PMID Version='1'>1</PMID>") -> bytes:
    abstract = f"<Abstract><AbstractText>{title * 20}</AbstractText></Abstract>"
    article = f"<Article><ArticleTitle>{title}</ArticleTitle>{abstract}</Article>"
    return f"<PubmedArticle><MedlineCitation>{pmid}{article}</MedlineCitation></PubmedArticle>".encode()


def _set(record: bytes, head: bytes = b"") -> bytes:
    return head + b"<PubmedArticleSet>" + record + b"</PubmedArticleSet>"


def _article(body: str, head: str = "", year: str = "2001") -> bytes:
    meta = f"<article-id pub-id-type='pmc'>1</article-id><pub-date><year>{year}</year></pub-date>"
    front = f"<front><article-meta>{meta}</article-meta></front>"
    return f"{head}<article>{front}<body><p>{body}</p></body></article>".encode()


_ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file://{secret}">]>'
_PARAMETER = '<!DOCTYPE x [<!ENTITY % p SYSTEM "file://{secret}"> %p;]>'
_LAUGHS = (
    "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12)) + "]>"
)
for _name, _doctype, _use in (
    ("XXE", _ENTITY, "&e;"),
    ("XXE by parameter", _PARAMETER, "x"),
    ("billion laughs", _LAUGHS, "&a11;"),
):
    ATTACKS[f"{_name}, PubMed"] = _read("pubmed", "a.xml", lambda w, d=_doctype, u=_use: _set(_record(u), d.encode()))
    ATTACKS[f"{_name}, JATS"] = _read("pmc", "a.nxml", lambda w, d=_doctype, u=_use: _article(u, d))
_INCLUDE = "<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='file://{secret}' parse='text'/>"
ATTACKS["XInclude, JATS"] = _read("pmc", "a.nxml", lambda w: _article(_INCLUDE), False)

for _codec in ("uu", "bz2", "zlib", "hex", "base64", "quopri", "rot13", "punycode", "idna", "unicode_escape",
"undefined", "utf-7",
               "cp037", "x" * 300):  # fmt: skip
    _head = f'<?xml version="1.0" encoding="{_codec}"?>'
    ATTACKS[f"codec {_codec[:20]}, PubMed"] = _read("pubmed", "a.xml", lambda w, h=_head: _set(_record(), h.encode()))
    ATTACKS[f"codec {_codec[:20]}, JATS"] = _read("pmc", "a.nxml", lambda w, h=_head: _article("x", h))


def _bomb(world: World) -> bytes:
    return gzip.compress(bytes(200 << 20), 6, mtime=0)


for _source, _file in (("pubmed", "a.xml.gz"), ("pmc", "a.tar.gz"), ("jsonl", "a.jsonl.gz")):
    ATTACKS[f"gzip bomb, {_source}"] = _read(_source, _file, _bomb)


def _tar(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[World], bytes]:
    """A package whose second member is hostile."""

    def make(world: World) -> bytes:
        members = [("a.nxml", _article("first")), (name, _article("second") if kind == tarfile.REGTYPE else b"")]
        return pack(members, tarfile.GNU_FORMAT, {1: {"type": kind, "linkname": link}})

    return make


for _label, _make in {
    "absolute": _tar("/tmp/canary.nxml"), "parent": _tar("../../canary.nxml"),
    "hidden parent": _tar("a/../../canary.nxml"),
    "backslash": _tar("..\\..\\canary.nxml"), "symbolic link": _tar("l.nxml", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": _tar("l.nxml", tarfile.LNKTYPE, "../../etc/passwd"), "device": _tar("d.nxml", tarfile.CHRTYPE),
    "FIFO": _tar("f.nxml", tarfile.FIFOTYPE), "no end mark": lambda w: pack([("a.nxml",
    _article("x"))])[:-10240].ljust(1024, b"\0")[:1024],
}.items():  # fmt: skip
    ATTACKS[f"tar, {_label}"] = _read("pmc", "a.tar", _make)


def _joined(zipped: bool) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        """Two packages in one file: both are read, or neither."""
        name = "a.tar.gz" if zipped else "a.tar"
        members = [(f"{i}.nxml", _article(f"text {i}").replace(b">1<", b">%d<" % i)) for i in (1, 2)]
        (folder / name).write_bytes(joined(members, zipped))
        found = documents(world, folder, "pmc", name)
        verdict = weigh(found.outcome, (name,))
        count = found.digest.count("[")
        return (
            Verdict("lost", f"{count} of 4 articles, exit code 0") if verdict.kind == "ok" and count != 4 else verdict
        )

    return attack


ATTACKS["joined tar"], ATTACKS["joined tar.gz"] = _joined(False), _joined(True)

# What a regular expression may take for ever: each pattern's own repeated pieces, and no end to them.
for _label, _body in {
    "numbers in a citation": "<xref ref-type='bibr'>" + "1" * 60 + "!</xref>",
    "citations": "[" + "<xref ref-type='bibr'>1</xref>, " * 40 + "x",
    "emphasis": "<i><b><sup>" * 30 + "x" + "</sup></b></i>" * 30, "entities": "&amp;" * 3000,
    "brackets": "[" * 20000, "blanks": " " * 50000 + "x",
    "named citations": "(" + "see <xref ref-type='bibr'>Smith et al</xref> and " * 30,
    "TeX": "<tex-math>" + "\\begin{document}" * 2000 + "</tex-math>",
}.items():  # fmt: skip
    ATTACKS[f"long match, JATS {_label}"] = _read("pmc", "a.nxml", lambda w, b=_body: _article(b), False)
    ATTACKS[f"long match, PubMed {_label}"] = _read("pubmed", "a.xml", lambda w, b=_body: _set(_record(b)), False)
ATTACKS["long match, PMIDs"] = _read(
    "pubmed", "a.xml", lambda w: _set(_record("T", "<PMID " * 20000 + "<PMID>1</PMID>")), False
)
ATTACKS["long match, gzip members"] = _read(
    "jsonl", "a.jsonl.gz", lambda w: gzip.compress(b"", mtime=0) * 20000 + gzip.compress(b'{"text":"x"}'), False
)

for _digit in ("²", "٣", "²⁰⁰¹", "１９９９", "1" * 5000):
    ATTACKS[f"year {_digit[:6]}, JATS"] = _read("pmc", "a.nxml", lambda w, d=_digit: _article("text", "", d), False)
    _line = json.dumps({"id": 1, "text": "text of a record", "year": _digit, "pmid": _digit}).encode()
    ATTACKS[f"year {_digit[:6]}, JSONL"] = _read("jsonl", "a.jsonl", lambda w, t=_line: t, False)
    ATTACKS[f"version {_digit[:6]}, PubMed"] = _read(
        "pubmed", "a.xml", lambda w, d=_digit: _set(_record("T", f'<PMID Version="{d}">1</PMID>')), False
    )
for _label, _line in {
    "text": b'{"id": 1, "text": "half \\ud800 a pair"}', "id": b'{"id": "\\udfff", "text": "text"}',
    "key": b'{"\\ud800": 1, "text": "text"}',
    "nesting": b'{"text": "x", "y": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    "giant number": b'{"text": "x", "id": ' + b"9" * 100000 + b"}",
}.items():  # fmt: skip
    ATTACKS[f"JSONL, {_label}"] = _read("jsonl", "a.jsonl", lambda w, t=_line: t + b"\n", False)


class _Touch:
    """Whoever unpickles this makes a file named canary."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def _pickle(place: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        import numpy as np
        import torch

        held = io.BytesIO()
        torch.save({"model": _Touch()}, held)
        data = held.getvalue()
        train = world.path / "train.yaml"
        words = ["CPU", "-p", train, "-m", "eval", "-o", "out", "--checkpoint_path"]
        program = "modelzoo"
        if place == "checkpoint":
            world.copy("run", to=folder)
            (folder / STEP / "model.safetensors").write_bytes(data)
            seal(folder / STEP)
            words.append(STEP)
        elif place == "GPT-2 folder":
            world.copy("export", to=folder)
            (folder / "export/model.safetensors").unlink()
            (folder / "export/pytorch_model.bin").write_bytes(data)
            words = ["import", "export", "out"]
        elif place in ("x.pt", "x.mdl", "x.ckpt"):
            (folder / place).write_bytes(data)
            words.append(place)
        elif place == ".mdl leaf":
            world.copy("model.mdl", to=folder)
            about = {"__TYPE__": "ObjectSerializer", "object": pickle.dumps(_Touch()).hex()}

            def put(file) -> None:
                name = next(n for n in file.attrs if n.startswith("model."))
                file.attrs[name] = json.dumps({name: about})

            (folder / "model.mdl").write_bytes(edit((folder / "model.mdl").read_bytes(), put))
            words = ["import", "model.mdl", "out", "-p", train]
        else:
            program = "data_preprocessing"
            words = [
                "jsonl",
                "--input",
                world.path / "jsonl/docs.jsonl",
                "--output",
                "out",
                *world.job_flags,
                "--share",
                "0/1",
            ]
            run_main(program, [*words, "--step", "extract"], folder)
            if place == "job's arrays":
                columns = np.load(next((folder / "out/work/extract").glob("*.npz")))
                np.savez(
                    next((folder / "out/work/extract").glob("*.npz")),
                    **{k: np.array([_Touch()] * 60, dtype=object) for k in columns},
                )
        outcome = run_main(program, words, folder)
        if list(folder.rglob("canary")):
            return Verdict("outside", "a pickle was run")
        return _refused(weigh(outcome))

    return attack


for _place in ("checkpoint", "GPT-2 folder", "x.pt", "x.mdl", "x.ckpt", ".mdl leaf", "job's arrays"):
    ATTACKS[f"pickle, {_place}"] = _pickle(_place)


def _names_outside(where: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        """A manifest that names a file outside its folder: it is not read, and not removed."""
        world.copy("run", "shards", "export", to=folder)
        (folder / "x").write_text(SECRET)
        shutil.copy(folder / STEP / "model.safetensors", folder / "x.safetensors")
        program, words = "modelzoo", ["export", "run", "out"]
        path = folder / {"checkpoint": f"{STEP}/manifest.json", "shards": "shards/train/manifest.json",
        "output": "shards/manifest.json",
                         "index": "export/model.safetensors.index.json"}[where]  # fmt: skip
        value = {"weight_map": {"a": "../x.safetensors"}} if where == "index" else json.loads(path.read_text())
        if where == "checkpoint":
            value["files"]["../../../x.safetensors"] = value["files"].pop("model.safetensors")
            words = ["export", STEP, "out", "-p", world.path / "train.yaml"]
        elif where == "index":
            (folder / "export/model.safetensors").unlink()
            words = ["import", "export", "out"]
        else:
            from modelzoo.records import seal as seal_manifest

            program, words = "data_preprocessing", ["verify", "shards"]
            if where == "shards":
                value["shards"][0]["file"] = "../../x"
            else:
                value["files"]["../x"] = "0" * 64
            value = seal_manifest({k: v for k, v in value.items() if k != "self_sha256"})
        path.write_text(json.dumps(value))
        return _refused(
            run_and_compare(program, words, folder, ("manifest.json", "index.json", "x", "export", "shards"))
        )

    return attack


for _where in ("checkpoint", "shards", "output", "index"):
    ATTACKS[f"manifest names ../x, {_where}"] = _names_outside(_where)


def _tensor_names(world: World, folder: Path) -> Verdict:
    """Tensors that are named like paths."""
    world.copy("run", to=folder)
    path = folder / STEP / "model.safetensors"
    header, data = split(path.read_bytes())
    path.write_bytes(join({f"../../{k}": v for k, v in header.items()}, data))
    seal(folder / STEP)
    before = snapshot(folder)
    verdict = run_and_compare("modelzoo", ["export", "run", "out"], folder, (STEP, "run"))
    return Verdict("outside", p) if (p := strayed(before, snapshot(folder), ("out",))) else _refused(verdict)


ATTACKS["tensors named ../x"] = _tensor_names
