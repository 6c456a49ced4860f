"""PMC's cloud service: what is chosen and fetched, what goes wrong on the way. Nothing here leaves this machine."""

import gzip
import hashlib
import json
import os
import random
import re
import tarfile
import time

import numpy as np
import pytest

from data_preprocessing import cli
from data_preprocessing.downloading import bucket, choice, store, transfer
from data_preprocessing.inputs import tar
from tests.data_preprocessing.downloading.pmc_kills import kill_at_random, tree, words
from tests.data_preprocessing.downloading.pmc_service import CODES, DATES, INVENTORIES, make_articles, make_xml, serving
from tests.data_preprocessing.test_full_disk import run as run_limited

COMM = ("CC0", "CC BY", "CC BY-SA", "CC BY-ND")


@pytest.fixture
def service():
    with serving(make_articles(66)) as found:
        yield found


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Pauses between tries are a hundredth of what they are."""
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


def run(service, out, *more, expect=0):
    assert cli.main(words(service, out, *more)) == expect


def highest(articles) -> dict[int, int]:
    return {i: max(v for j, v in articles if j == i) for i, _ in articles}


def expected(service, codes=COMM, retracted=False) -> list[tuple[str, bytes]]:
    """(name, XML) of the articles that fit, in the order of their ids."""
    chosen = sorted(highest(service.articles).items())
    facts = [(i, v, service.articles[i, v]) for i, v in chosen]
    return [(f"PMC{i}.{v}/PMC{i}.{v}.xml", f[0]) for i, v, f in facts if f[1] in codes and (retracted or not f[2])]


def members(out) -> list[list[tuple[str, bytes]]]:
    """(name, bytes) of the members of each tar, by the standard library."""
    found = []
    for path in sorted(out.glob("pmc.*.tar.gz")):
        with tarfile.open(path) as opened:
            found.append([(m.name, opened.extractfile(m).read()) for m in opened.getmembers()])
    return found


def flat(out):
    return [member for tar_ in members(out) for member in tar_]


@pytest.mark.parametrize(
    ("flags", "codes", "retracted"),
    [
        ([], COMM, False),
        (["--licence", "noncomm"], ("CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"), False),
        (["--licence", "other"], (None, "TDM"), False),
        (["--licence", "comm", "other"], (*COMM, None, "TDM"), False),
        (["--licence", "all", "--keep_retracted"], CODES, True),
    ],
)
def test_the_highest_version_of_every_article_of_a_licence(service, tmp_path, flags, codes, retracted, capsys):
    run(service, tmp_path / "out", "--pmc", "all", *flags)
    want = expected(service, codes, retracted)
    assert flat(tmp_path / "out") == want and len(want) > 5
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{len(want):,} articles" in said
    assert f"next: python -m data_preprocessing pmc --input {tmp_path / 'out'} " in said
    record = json.loads((tmp_path / "out" / "download.json").read_text())
    assert record["inventory"] == DATES[0] and record["listed"] == 66 and record["articles"] == len(want)
    assert sum(record["articles_by_licence"].values()) == len(want)
    assert len(want) + sum(record["left_out"].values()) == 66
    for name, facts in record["tars"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == facts["sha256"]


@pytest.mark.parametrize("count", [1, 7, 20, 1000])
def test_the_first_n_that_fit_in_tars_of_a_size(service, tmp_path, count):
    run(service, tmp_path / "out", "--pmc", count, "--articles_per_tar", 4)
    want = expected(service)[:count]
    assert [len(tar_) for tar_ in members(tmp_path / "out")] == [len(want[k : k + 4]) for k in range(0, len(want), 4)]
    assert flat(tmp_path / "out") == want
    if count == 1:
        assert len(service.asked) < 30  # the metadata of those that are not needed are not all fetched


def test_a_range_is_one_of_ids(service, tmp_path):
    run(service, tmp_path / "out", "--pmc", "110-129", "--licence", "all", "--keep_retracted")
    assert [name.split(".")[0] for name, _ in flat(tmp_path / "out")] == [f"PMC{i}" for i in range(110, 130)]


def test_since_keeps_what_changed_on_that_day_or_later(service, tmp_path):
    run(service, tmp_path / "out", "--pmc", "--since", "2026-05-12", "--licence", "all", "--keep_retracted")
    days = {i: service.articles[i, v][3] for i, v in highest(service.articles).items()}
    assert {int(n[3:].split(".")[0]) for n, _ in flat(tmp_path / "out")} == {
        i for i, d in days.items() if d >= "2026-05-12"
    }


@pytest.mark.parametrize("listed", [2000, 3])
def test_ids_by_version_listing_or_by_inventory(service, tmp_path, listed, monkeypatch, capsys):
    monkeypatch.setattr(choice, "LISTED", listed)
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfPMC103\r\n# a remark\n106 # two versions\n\npmc0099\nPMC111\n103\n")
    run(service, tmp_path / "out", "--ids", tmp_path / "ids", "--licence", "all")
    assert [name for name, _ in flat(tmp_path / "out")] == ["PMC103.1/PMC103.1.xml", "PMC106.2/PMC106.2.xml"]
    assert (tmp_path / "out" / "skipped.tsv").read_text() == (
        "PMC99\tthe service has no version of it\nPMC111.2\tretracted\n"
    )
    said = capsys.readouterr().out
    assert "left out 1: the service has no version of it, 1: retracted (skipped.tsv)" in said
    assert any(name == "PMC106." for name, _ in service.asked) == (listed == 2000)


@pytest.mark.parametrize(
    ("text", "why"),
    [("PMC1.2", "ids:1: 'PMC1.2' is no PMC id, as PMC176545; leave the version out"), ("", "holds no PMC ids"),
     ("PMC5\n10.1/x", "ids:2"), ("PMC0", "ids:1"), ("\u00b2", "ids:1")],
)  # fmt: skip
def test_other_ids_are_one_line(service, tmp_path, text, why, capsys):
    (tmp_path / "ids").write_text(text)
    run(service, tmp_path / "out", "--ids", tmp_path / "ids", expect=2)
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


XML = "PMC101.2/PMC101.2.xml"
ABOUT = "metadata/PMC101.2.json"


@pytest.mark.parametrize("key", [XML, ABOUT])
@pytest.mark.parametrize("faults", [["cut"], ["500", "503"], ["429"], ["flip"], ["junk", "cut", "502"]])
def test_faults_of_one_object_are_overcome(service, tmp_path, key, faults):
    service.faults[key] = list(faults)
    run(service, tmp_path / "out", "--pmc")
    assert flat(tmp_path / "out") == expected(service) and not service.faults[key]


def test_a_server_that_is_asked_too_much_is_left_alone_as_long_as_it_says(service, tmp_path):
    service.faults[ABOUT] = ["429 after 1"]
    run(service, tmp_path / "out", "--pmc", 3, "--workers", 1)
    names = [name for name, _ in service.asked]
    first = names.index(ABOUT)
    assert service.asked[first + 1][1] - service.asked[first][1] >= 1.0  # whatever it is that is asked for next
    assert names.count(ABOUT) == 2 and flat(tmp_path / "out") == expected(service)[:3]


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7), ("", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
def test_pauses_that_are_asked_for(text, seconds):
    assert transfer.read_pause(text) == seconds


def test_a_slow_answer_is_begun_anew(service, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", 1.0)
    service.faults[XML] = ["drip"]
    run(service, tmp_path / "out", "--pmc", 3)
    assert flat(tmp_path / "out") == expected(service)[:3]


def test_what_is_gone_is_named_and_counted(service, tmp_path, capsys):
    service.always = {XML: "404", "metadata/PMC103.1.json": "410"}
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4)
    want = [member for member in expected(service) if member[0] not in (XML, "PMC103.1/PMC103.1.xml")]
    assert flat(tmp_path / "out") == want
    assert len(members(tmp_path / "out")[0]) == 3  # its place stays empty
    assert (tmp_path / "out" / "skipped.tsv").read_text().splitlines()[:2] == [
        "PMC101.2\tits XML is gone (404)", "PMC103.1\tits metadata are gone (404)",
    ]  # fmt: skip
    assert "1: its metadata are gone (404)" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "fault"), [(XML, "500"), (XML, "flip"), (XML, "403"), (ABOUT, "500"), (ABOUT, "cut")])
def test_what_fails_again_and_again_ends_in_one_line_and_can_be_left_out(service, tmp_path, fault, key, capsys):
    service.always[key] = fault
    flags = ["--pmc", "--articles_per_tar", 4, "--retries", 1]
    run(service, tmp_path / "out", *flags, expect=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1 and f"/{key}: " in said[0] and "--skip_failed" in said[0]
    if key == XML:
        assert flat(tmp_path / "out") == expected(service)[4:]  # all tars but the one that it has a place in
        assert not json.loads((tmp_path / "out" / "download.json").read_text())["complete"]
    run(service, tmp_path / "out", *flags, "--skip_failed")
    assert flat(tmp_path / "out") == [member for member in expected(service) if member[0] != XML]
    assert "PMC101.2\t" in (tmp_path / "out" / "skipped.tsv").read_text()


def test_it_goes_on_once_the_service_is_well_again(service, tmp_path):
    run(service, tmp_path / "whole", "--pmc", "--articles_per_tar", 4)
    service.always[XML] = "500"
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4, "--retries", 0, expect=2)
    service.always.clear()
    asked = len(service.asked)
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4)
    assert [name for name, _ in service.asked[asked:]] == [XML]  # that one alone
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4)
    assert len(service.asked) == asked + 1


def test_an_outage_stops_the_run_and_not_after_every_article(service, tmp_path, capsys):
    service.always = {f"metadata/PMC{i}.{v}.json": "403" for i, v in service.articles}
    run(service, tmp_path / "out", "--pmc", "--workers", 2, expect=2)
    assert "transfers failed in a row, the last: " in capsys.readouterr().err and len(service.asked) < 30


def test_an_article_that_changed_since_its_metadata_were_read(service, tmp_path):
    service.changed[XML] = make_xml(101, 77)
    run(service, tmp_path / "out", "--pmc", 2)
    assert flat(tmp_path / "out")[0] == (XML, make_xml(101, 77))


@pytest.mark.parametrize("fault", ["no manifest", "cut manifest", "cut file", "no file", "no md5, cut file"])
def test_the_newest_inventory_that_is_complete_is_taken(service, tmp_path, fault, capsys):
    service.damaged = {DATES[0]: fault, DATES[1]: fault}
    run(service, tmp_path / "out", "--pmc", "--retries", 1)
    record = json.loads((tmp_path / "out" / "download.json").read_text())
    assert record["inventory"] == DATES[2] and flat(tmp_path / "out") == expected(service)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert len(notes) == 2 and DATES[0] in notes[0] and DATES[1] in notes[1]


def test_no_complete_inventory_is_one_line(service, tmp_path, capsys):
    service.damaged = dict.fromkeys(DATES[:3], "no manifest")
    run(service, tmp_path / "out", "--pmc", expect=2)
    assert "none of the newest 3 inventories is complete" in capsys.readouterr().err
    service.always[INVENTORIES] = "403"
    run(service, tmp_path / "out", "--pmc", expect=2)
    assert "403" in capsys.readouterr().err


def test_an_inventory_without_md5_is_held_to_gzip(service, tmp_path):
    service.damaged = {DATES[0]: "no md5"}
    run(service, tmp_path / "out", "--pmc", 3)
    assert json.loads((tmp_path / "out" / "download.json").read_text())["inventory"] == DATES[0]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--pmc", "1", "--pmc_group", "oa_comm"], "give --licence comm (was oa_comm)"),
        (["--baseline", "1", "--licence", "comm"], "--licence: is for --pmc"),
        (["--baseline", "1", "--ids", "x"], "--ids: is for --pmc"),
        (["--updates", "1", "--workers", "17"], "--workers 17"),
        (["--pmc", "1", "--since", "2026-02-30"], "--since '2026-02-30'"),
        (["--pmc", "1", "--since", "2999-01-01"], "lies ahead"),
        (["--pmc", "1-"], "'1-'"),
        (["--pmc", "1", "--workers", "257"], "--workers"),
        (["--pmc", "1", "--licence", "by"], "--licence"),
        (["--pmc", "1", "--rate", "0"], "--rate"),
        (["--pmc", "900-990"], "lists no article"),
        ([], "give --baseline, --updates, --pmc or --ids"),
    ],
)
def test_what_cannot_be_done_is_one_line(service, tmp_path, flags, why, capsys):
    assert cli.main(["download", "--output", str(tmp_path / "out"), "--base_url", service.url, *flags]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_a_licence_that_no_article_has_is_one_line(service, tmp_path, capsys):
    run(service, tmp_path / "out", "--pmc", "102-102", expect=2)
    assert "no article fits: 0 articles" in capsys.readouterr().err


def test_another_request_for_the_same_folder_is_refused(service, tmp_path, capsys):
    run(service, tmp_path / "out", "--pmc", 3)
    before = tree(tmp_path / "out")
    run(service, tmp_path / "out", "--pmc", 4, expect=2)
    assert "was begun with --pmc 3, here 4" in capsys.readouterr().err
    run(service, tmp_path / "out", "--pmc", 3, "--keep_retracted", expect=2)
    assert "was begun with --keep_retracted False, here True" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def test_a_tar_that_was_removed_or_cut_is_made_again(service, tmp_path):
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4)
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "pmc.00002.tar.gz").unlink()
    os.truncate(tmp_path / "out" / "pmc.00004.tar.gz", 100)
    asked = len(service.asked)
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4)
    assert tree(tmp_path / "out") == before and len(service.asked) == asked + 8


def fail_to_write(path, *_):
    raise OSError(28, "No space left on device", path)


def test_bytes_that_a_power_cut_spoiled_are_fetched_again(service, tmp_path, monkeypatch):
    run(service, tmp_path / "whole", "--pmc")
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_tar", lambda *_: (_ for _ in ()).throw(OSError(28, "the disk is full", "tar")))
        run(service, tmp_path / "out", "--pmc", expect=2)
    spool = tmp_path / "out" / "state" / "spool.00000"
    data = bytearray(spool.read_bytes())
    data[200] ^= 1  # in the first article that came
    spool.write_bytes(data[:-5])  # and the last is cut
    run(service, tmp_path / "out", "--pmc")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_reads_and_writes_that_do_less_than_was_asked(service, tmp_path, monkeypatch):
    run(service, tmp_path / "whole", "--pmc", "--articles_per_tar", 4)
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, max(1, n // 2), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: 32 if len(data) == 32 else 100], at))
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 4)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_requests_per_second_are_held_to_a_rate(service, tmp_path):
    begun = time.monotonic()
    run(service, tmp_path / "out", "--pmc", 3, "--rate", 40)
    assert time.monotonic() - begun > (len(service.asked) - 1) / 40


def test_connections_are_kept_and_no_more_than_asked_for(service, tmp_path):
    service.pause = 0.002
    opened = []
    accept = service.process_request
    service.process_request = lambda *args: (opened.append(1), accept(*args))
    run(service, tmp_path / "out", "--pmc", "--workers", 3)
    assert len(opened) <= 3 and len(service.asked) > 90


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(service, tmp_path):
    """Files may have so many bytes at most: the spool, the ledger, the list or the tars do not fit."""
    flags = ["--pmc", "--articles_per_tar", 8]
    run(service, tmp_path / "whole", *flags)
    for limit in (100, 1500, 9000):
        code, said = run_limited(words(service, tmp_path / "out", *flags), limit)
        errors = [line for line in said.splitlines() if not line.startswith("pmc  ")]
        assert code == 2 and len(errors) == 1 and errors[0].startswith(f"error: {tmp_path / 'out'}"), said
        assert "File too large" in said or "free some space" in said
    run(service, tmp_path / "out", *flags)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_the_proxy_of_the_environment_is_used(service, tmp_path, monkeypatch, capsys):
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", service.url)
    flags = ["--pmc", "3", "--output", str(tmp_path / "out"), "--retries", "0"]
    assert cli.main(["download", *flags, "--base_url", "http://pmc.invalid"]) == 0
    assert flat(tmp_path / "out") == expected(service)[:3]
    monkeypatch.setenv("no_proxy", "pmc.invalid")
    flags[3] = str(tmp_path / "other")
    assert cli.main(["download", *flags, "--base_url", "http://pmc.invalid"]) == 2
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "socks5://me:hunter2@127.0.0.1:9")
    capsys.readouterr()
    assert cli.main(["download", *flags, "--base_url", "http://pmc.invalid"]) == 2
    assert capsys.readouterr().err.startswith("error: http_proxy: is a proxy of the kind 'socks5'")
    for odd in ("http://", "http://[::1", f"{'x' * 64}:8080", "127.0.0.1:99999"):
        monkeypatch.setenv("http_proxy", odd)
        assert cli.main(["download", *flags, "--base_url", "http://pmc.invalid"]) == 2
        assert "names no host" in capsys.readouterr().err


def test_from_the_service_to_shards(service, tmp_path, tokenizer, capsys):
    """The next command that the last line names, with small settings."""
    run(service, tmp_path / "out", "--pmc", "--articles_per_tar", 10)
    flags = ["--tokenizer", str(tokenizer), "--msl", "64", "--workers", "1", "--quiet"]
    assert cli.main(["pmc", "--input", str(tmp_path / "out"), "--output", str(tmp_path / "shards"), *flags]) == 0
    table = b"".join(gzip.decompress(p.read_bytes()) for p in (tmp_path / "shards" / "documents").glob("*.tsv.gz"))
    found = set(re.findall(r"\tPMC(\d+)", table.decode()))
    assert found == {re.match(r"PMC(\d+)", name)[1] for name, _ in expected(service)}


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "known"),
    [(None, "no code"), ("", "no code"), ("CC BY", "CC BY"), ("cc-by_nc", "CC BY-NC"), ("CC BY 4.0", "CC BY"),
     ("CC BY-NC-ND", "CC BY-NC-ND"), ("CC0", "CC0"), ("CC-0", "CC0"), ("TDM", "TDM"), ("Elsevier", "another code")],
)  # fmt: skip
def test_licence_codes(code, known):
    assert bucket.sort_licence(code) == known


def test_every_code_is_in_one_group():
    assert sorted(code for group in bucket.GROUPS.values() for code in group) == sorted(bucket.CODES)


@pytest.mark.parametrize(
    "change",
    [{"pmcid": "PMC8"}, {"version": 2}, {"is_retracted": "perhaps"}, {"license_code": 4}, {"xml_url": "s3://b/PMC7.1/x"},
     {"xml_url": "s3://b/PMC7.1/PMC7.1.xml"}, {"xml_url": 5}, {"pmcid": None}],
)  # fmt: skip
def test_metadata_of_another_form_are_not_taken(change):
    good = {"pmcid": "PMC7", "version": 1, "license_code": "CC BY", "is_retracted": False}
    good["xml_url"] = "s3://pmc-oa-opendata/PMC7.1/PMC7.1.xml?md5=" + "0F" * 16
    found = bucket.read_metadata(json.dumps(good).encode(), 7, 1)
    assert found == ("CC BY", False, b"\x0f" * 16)
    assert bucket.read_metadata(json.dumps(good | {"xml_url": None}).encode(), 7, 1).md5 is None
    with pytest.raises(transfer.Again):
        bucket.read_metadata(json.dumps(good | change).encode(), 7, 1)


def test_the_list_is_sorted_and_holds_the_highest_version():
    draw = random.Random(3)
    rows = [(draw.randrange(1, 10**9), draw.randrange(1, 12), draw.randrange(1, 40_000)) for _ in range(500)]
    rows += [(i, v + 1, d) for i, v, d in rows[::3]]
    draw.shuffle(rows)
    packed = np.array([i << 26 | v << 16 | d for i, v, d in rows], np.int64)
    packed = choice.select(packed, choice.Ask(0, 10**10, 0, None))
    ids, versions = choice.unpack(packed)
    want = sorted((i, max(v for j, v, _ in rows if j == i)) for i in {i for i, _, _ in rows})
    assert list(zip(ids.tolist(), versions.tolist(), strict=True)) == want


def test_a_tar_is_the_same_whatever_the_order_of_arrival(tmp_path):
    found = []
    for seed in range(3):
        articles = [(k, make_xml(k)) for k in range(30)]
        random.Random(seed).shuffle(articles)
        spool = store.Spool(str(tmp_path / f"spool{seed}"))
        for k, data in articles:
            spool.add(k, data)
        spool.close()
        spool = store.Spool(str(tmp_path / f"spool{seed}"))
        named = [store.Member(k, f"PMC{k}.1/PMC{k}.1.xml", hashlib.md5(make_xml(k)).digest()) for k in range(30)]
        assert store.find_damaged(spool, named) == []
        path = tmp_path / f"{seed}.tar.gz"
        assert store.write_tar(str(path), spool, named).bytes == path.stat().st_size
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]
    read = list(tar.read_files(iter([gzip.decompress(found[0])]), "x", lambda _: True, 1 << 20))
    assert read == [(f"PMC{k}.1/PMC{k}.1.xml", make_xml(k)) for k in range(30)]


@pytest.mark.parametrize("cut", range(0, 200, 23))
def test_a_spool_loses_what_was_being_written_alone(tmp_path, cut):
    spool = store.Spool(str(tmp_path / "spool"))
    for k in range(3):
        spool.add(k, bytes([k]) * 40)
    spool.close()
    whole = os.path.getsize(tmp_path / "spool")
    os.truncate(tmp_path / "spool", max(0, whole - cut))
    left = store.Spool(str(tmp_path / "spool"))
    assert len(left.places) == max(0, (whole - cut) // (whole // 3))
    left.add(9, b"x")
    left.close()
    again = store.Spool(str(tmp_path / "spool"))
    assert again.places == left.places
    again.close()


# --- kills ------------------------------------------------------------------------------------------------------------


def test_kills_end_in_the_bytes_of_an_undisturbed_run(service, tmp_path):
    flags = ["--pmc", "--articles_per_tar", 3]
    run(service, tmp_path / "whole", *flags)
    service.pause = 0.002
    assert kill_at_random(service, tmp_path / "out", flags, kills=3, seed=1) == 3
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith((".tmp", ".part"))]
