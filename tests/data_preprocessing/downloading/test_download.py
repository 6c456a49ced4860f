"""Downloads from a server on the loopback: resume, damage, faults. Nothing here leaves this machine."""

import argparse
import asyncio
import contextlib
import hashlib
import http.server
import os
import threading
import time

import pytest

from data_preprocessing import cli
from data_preprocessing.downloading import download, transfer
from modelzoo.config.errors import UserError
from modelzoo.lock import Busy, lock_folder

FILES = {f"pubmed30n{k:04d}.xml.gz": bytes([k]) * 200_000 + bytes(range(256)) for k in range(1, 6)}


class Server(http.server.ThreadingHTTPServer):
    """Serves FILES, and goes wrong as `faults` says: (path ending) -> list of what happens next."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.asked, self.md5 = {}, [], True


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        self.server.asked.append((name, self.headers.get("Range")))
        fault = self.server.faults.get(name, [])
        fault = fault.pop(0) if fault else ""
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault.startswith("to "):
            self.reply(b"", 302, Location=fault[3:])
        elif fault in ("silent", "drip headers", "drip"):
            self.drip(fault)
        elif not name:
            page = (
                "".join(f'<a href="{n}">{n}</a><a href="{n}.md5">m</a>' for n in FILES)
                + '<a href="../../evil.xml.gz">x</a>'
            )
            self.reply(page.encode())
        elif name.endswith(".md5"):
            body = FILES.get(name.removesuffix(".md5"))
            if body is None or not self.server.md5:
                self.send_error(404)
            else:
                form = self.server.md5 if isinstance(self.server.md5, str) else "MD5({name})= {md5}\n"
                facts = {"name": name.removesuffix(".md5"), "md5": hashlib.md5(body).hexdigest()}
                self.reply(form.format(**facts).encode())
        elif name not in FILES:
            self.send_error(404)
        else:
            self.send_file(FILES[name], fault)

    def reply(self, body: bytes, code: int = 200, **headers):
        self.send_response(code)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, fault: str):
        """Nothing, or a byte now and then: each within the timeout."""
        self.close_connection = True
        if fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(0 if fault == "silent" else 60):
                self.wfile.write(b"H")
                self.wfile.flush()
                time.sleep(0.1)
            time.sleep(3 if fault == "silent" else 0)

    def send_file(self, body: bytes, fault: str):
        first = self.headers.get("Range")
        start = int(first[6:-1]) if first and fault != "ignore range" else 0
        if start >= len(body):
            self.reply(b"", 416, Content_Range=f"bytes */{len(body)}")
            return
        part = body[start:]
        self.send_response(206 if start else 200)
        lengths = {"short": len(part) - 7, "long": len(part) + 7, "no number": "\u00b2", "negative": -1, "huge": 10**17}
        self.send_header("Content-Length", str(lengths.get(fault, len(part))))
        if start:
            total = len(body) + (fault == "contradiction")
            self.send_header("Content-Range", f"bytes {start - (fault == 'other range')}-{len(body) - 1}/{total}")
        self.end_headers()
        if fault == "cut":
            part = part[: len(part) // 2]
        elif fault == "flip":
            part = bytes([part[0] ^ 1]) + part[1:]
        self.wfile.write(part)
        self.close_connection = True


@pytest.fixture
def server():
    s = Server()
    thread = threading.Thread(target=s.serve_forever, daemon=True)
    thread.start()
    yield s
    s.shutdown()
    s.server_close()


def settings(server, **more):
    more = {"backoff": 0.01, "timeout": 10, **more}
    return transfer.Settings(base_url=f"http://127.0.0.1:{server.server_port}", **more)


def fetch(server, tmp_path, name="pubmed30n0001.xml.gz", **more):
    s = settings(server, **more)

    async def fetch_it():
        async with transfer.Client(s) as client:
            return await download.fetch(client, f"{s.base_url}/pubmed/baseline/{name}", str(tmp_path / name))

    count, _ = asyncio.run(fetch_it())
    assert (tmp_path / name).read_bytes() == FILES[name] and not (tmp_path / f"{name}.part").exists()
    return count


def verb(server, tmp_path, **what):
    args = {
        "baseline": None,
        "updates": None,
        **dict.fromkeys(("pmc", "pmc_group", "licence", "since", "ids", "rate", "articles_per_tar")),
        "keep_retracted": False,
        "skip_failed": False,
        "output": str(tmp_path / "out"),
        "base_url": f"http://127.0.0.1:{server.server_port}/",
        "workers": 2,
        "retries": 1,
        **what,
    }
    return download.run(argparse.Namespace(**args))


@pytest.mark.parametrize(
    ("wanted", "numbers"), [("2", [1, 2]), ("2-3", [2, 3]), ("4-99", [4, 5]), ("all", [1, 2, 3, 4, 5])]
)
def test_ranges(server, tmp_path, wanted, numbers):
    assert verb(server, tmp_path, baseline=wanted) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == [f"pubmed30n{k:04d}.xml.gz" for k in numbers]


@pytest.mark.parametrize(
    "wanted", ["0", "x", "3-2", "7-9", "-1", "0-3", "1-", "", "\u00b2", "\uff13", "1_0", "9" * 5000]
)
def test_bad_ranges(server, tmp_path, wanted):
    with pytest.raises(UserError):
        verb(server, tmp_path, baseline=wanted)


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"], ["cut", "cut", "cut"], ["flip"], ["503"], ["cut", "ignore range"], ["cut", "flip"], ["429"],
        ["short"], ["long"], ["no number"], ["negative"], ["cut", "other range"], ["cut", "contradiction"],
        ["to pubmed30n0001.xml.gz"],
    ],
)  # fmt: skip
def test_faults_are_overcome(server, tmp_path, faults):
    server.faults["pubmed30n0001.xml.gz"] = list(faults)
    fetch(server, tmp_path)


def test_resume_asks_for_the_rest_alone(server, tmp_path):
    name, body = next(iter(FILES.items()))
    (tmp_path / f"{name}.part").write_bytes(body[:150_000])
    assert fetch(server, tmp_path) == len(body) - 150_000
    assert (name, "bytes=150000-") in server.asked


@pytest.mark.parametrize("part", [b"", bytes(10), FILES["pubmed30n0001.xml.gz"], bytes(300_000)])
def test_any_leftover_ends_well(server, tmp_path, part):
    (tmp_path / "pubmed30n0001.xml.gz.part").write_bytes(part)
    fetch(server, tmp_path)


def test_whole_files_are_not_fetched_again_but_changed_ones_are(server, tmp_path):
    assert fetch(server, tmp_path) > 0 and fetch(server, tmp_path) == 0
    (tmp_path / "pubmed30n0001.xml.gz").write_bytes(b"an older release")
    assert fetch(server, tmp_path) > 0


def test_without_md5_gzip_has_to_be_whole(server, tmp_path):
    server.md5 = False
    with pytest.raises(UserError, match="not a whole gzip"):
        fetch(server, tmp_path, retries=1)  # the bodies here are no gzip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("faults", "message"), [(["cut"] * 3, "run again to go on"), (["flip"] * 3, "MD5"), (["404"], "404")]
)
def test_giving_up_is_one_clear_line(server, tmp_path, faults, message):
    server.faults["pubmed30n0001.xml.gz"] = list(faults)
    with pytest.raises(UserError, match=message):
        fetch(server, tmp_path, retries=2)
    assert not (tmp_path / "pubmed30n0001.xml.gz").exists()


def test_nobody_there(tmp_path, capsys):
    words = ["download", "--baseline", "1", "--output", str(tmp_path / "out"), "--base_url", "http://127.0.0.1:9"]
    assert cli.main([*words, "--retries", "0"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_only_web_addresses(tmp_path):
    for url in (
        "file:///etc",
        "ftp://x",
        "http://",
        "http:///x",
        "//x",
        "http://x:port",
        "http://[",
        "http://a b",
        "x",
        "http://a..b",
        f"http://{'x' * 64}.org",
    ):
        with pytest.raises(UserError, match="--base_url"):
            transfer.check_url(url)
    assert transfer.check_url("https://mirror.example/ncbi/") == "https://mirror.example/ncbi"


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@x", "ftp://me:hunter2@x/y", "http://x:hunter2@[", "http://x/?token=hunter2"]
)
def test_credentials_are_refused_and_not_printed(url, capsys):
    words = ["download", "--baseline", "1", "--output", "nowhere", "--base_url", url]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --base_url") and said.count("\n") == 1 and "hunter2" not in said


def test_the_last_line_says_what_was_fetched_and_checked(server, tmp_path, capsys):
    size = len(FILES["pubmed30n0001.xml.gz"])
    verb(server, tmp_path, baseline="1")
    line = f"1 files: 1 fetched ({size / 1e6:,.1f} MB), 0 there already; checked: 1 by MD5\n"
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: {line}"
    verb(server, tmp_path, baseline="2")
    assert "2 files: 1 fetched (0.2 MB), 1 there already; checked: 2 by MD5\n" in capsys.readouterr().out
    server.md5 = False
    verb(server, tmp_path, baseline="2")
    said = "2 files: 0 fetched (0.0 MB), 2 there already; checked: 2 not checked now (no MD5 is published)\n"
    assert said in capsys.readouterr().out


def test_fewer_files_than_asked_for_are_reported(server, tmp_path, capsys):
    assert len(download.choose(list(FILES), "4-999999999", "here")) == 2
    assert "2 of 999,999,996 are there (the server has 5, numbers 1 to 5)" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["{md5}  {name}\n", "{md5}", "{md5} *{name}", "# sums\nMD5 ({name}) = {md5}\n"])
def test_md5_files_of_known_forms(server, tmp_path, form):
    server.md5 = form
    fetch(server, tmp_path)


@pytest.mark.parametrize(
    "form", ["<html>ETag {md5}</html>", "MD5(other.xml.gz)= {md5}", "{md5}\n{md5}", " ", "sha {md5}{md5}"]
)
def test_md5_files_of_other_forms_are_one_line(server, tmp_path, form):
    server.md5 = form
    with pytest.raises(UserError, match=r"does not hold the MD5 of pubmed30n0001\.xml\.gz"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["silent", "drip headers", "drip"])
def test_nothing_is_waited_for_without_end(server, tmp_path, fault):
    """Bytes that come one by one, each in time, are no answer."""
    start, name = time.monotonic(), "pubmed30n0001.xml.gz"
    server.faults[name] = [fault]
    with pytest.raises(UserError, match="failed 1 times, last: "):
        fetch(server, tmp_path, retries=0, timeout=0.5)
    server.faults[f"{name}.md5"] = [fault]
    with pytest.raises(UserError, match=r"\.md5: failed 1 times, last: "):
        fetch(server, tmp_path, retries=0, timeout=0.5)
    assert time.monotonic() - start < 5
    fetch(server, tmp_path)


@pytest.mark.parametrize(
    "place", ["http://[", "http://127.0.0.2:9/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "//elsewhere/x"]
)
def test_redirects_to_other_hosts_are_refused(server, tmp_path, place):
    server.faults["pubmed30n0001.xml.gz"] = [f"to {place}"]
    with pytest.raises((UserError), match=r"redirects to|is not allowed|302"):
        fetch(server, tmp_path, retries=0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_the_disk_is_refused_before_it_fills(server, tmp_path):
    server.faults["pubmed30n0001.xml.gz"] = ["huge"]
    with pytest.raises(UserError, match="needs 100,000,000,000,000,000 bytes"):
        fetch(server, tmp_path)


def test_links_and_pipes_are_not_written_or_waited_for(server, tmp_path):
    name = "pubmed30n0001.xml.gz"
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / f"{name}.part").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=f"{name}.part"):
        fetch(server, tmp_path)
    (tmp_path / f"{name}.part").unlink()
    os.mkfifo(tmp_path / f"{name}.part")
    with pytest.raises(OSError, match="not a regular file"):
        fetch(server, tmp_path)
    (tmp_path / f"{name}.part").unlink()
    (tmp_path / name).symlink_to(tmp_path / "thesis")
    fetch(server, tmp_path)  # the link is replaced
    assert (tmp_path / "thesis").read_text() == "years of work" and not (tmp_path / "nowhere").exists()


def test_an_older_release_stays_until_the_newer_one_is_whole(server, tmp_path):
    name = "pubmed30n0001.xml.gz"
    (tmp_path / name).write_bytes(b"an older release")
    server.faults[name] = ["503"]
    with pytest.raises(UserError, match="503"):
        fetch(server, tmp_path, retries=0)
    assert (tmp_path / name).read_bytes() == b"an older release"


def test_a_second_download_into_the_folder_waits_for_none(server, tmp_path):
    with lock_folder(str(tmp_path / "out")), pytest.raises(Busy):
        verb(server, tmp_path, baseline="1")


@pytest.mark.parametrize(
    "address", ["http://", "http://x:port", "http://x:0", "http://[", "http://a..b", "http://me:pw@a..b"]
)
def test_an_address_of_no_host_is_refused_in_the_same_words_wherever_it_is_given(address, monkeypatch):
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UserError) as one:
        transfer.check_url(address)
    with pytest.raises(UserError) as other:
        transfer._choose_proxy("http://mirror.example/")
    assert str(one.value).removeprefix("--base_url") == str(other.value).removeprefix("http_proxy")
    assert "names no host, or no port that there is; correct it" in str(one.value) and "pw" not in str(one.value)
