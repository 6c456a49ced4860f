"""Downloads from a server on the loopback: resume, damage, faults. Nothing here leaves this machine."""

import argparse
import hashlib
import http.server
import threading

import pytest

from data_preprocessing import download
from modelzoo.config.errors import UserError

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
                self.reply(f"MD5({name})= {hashlib.md5(body).hexdigest()}\n".encode())
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

    def send_file(self, body: bytes, fault: str):
        first = self.headers.get("Range")
        start = int(first[6:-1]) if first and fault != "ignore range" else 0
        if start >= len(body):
            self.reply(b"", 416, Content_Range=f"bytes */{len(body)}")
            return
        part = body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
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
    return download.Settings(base_url=f"http://127.0.0.1:{server.server_port}", backoff=0.01, timeout=10, **more)


def fetch(server, tmp_path, name="pubmed30n0001.xml.gz", **more):
    s = settings(server, **more)
    _, count = download.fetch(f"{s.base_url}/pubmed/baseline/{name}", str(tmp_path / name), s)
    assert (tmp_path / name).read_bytes() == FILES[name] and not (tmp_path / f"{name}.part").exists()
    return count


def verb(server, tmp_path, **what):
    args = {
        "baseline": None,
        "updates": None,
        "pmc": None,
        "pmc_group": "oa_comm",
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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"pubmed30n{k:04d}.xml.gz" for k in numbers]


@pytest.mark.parametrize("wanted", ["0", "x", "3-2", "7-9", "-1"])
def test_bad_ranges(server, tmp_path, wanted):
    with pytest.raises(UserError):
        verb(server, tmp_path, baseline=wanted)


@pytest.mark.parametrize(
    "faults", [["cut"], ["cut", "cut", "cut"], ["flip"], ["503"], ["cut", "ignore range"], ["cut", "flip"], ["429"]]
)
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


def test_nobody_there(tmp_path):
    s = download.Settings(base_url="http://127.0.0.1:9", retries=0, timeout=5)
    with pytest.raises(UserError, match="cannot be reached"):
        download.listing(s.base_url + "/pubmed/baseline", download._PUBMED, s)


def test_only_web_addresses(tmp_path):
    with pytest.raises(UserError, match="http"):
        download.run(
            argparse.Namespace(
                base_url="file:///etc",
                baseline="1",
                updates=None,
                pmc=None,
                pmc_group="oa_comm",
                output=str(tmp_path),
                workers=1,
                retries=0,
            )
        )
