"""A mirror of NLM's baseline on this machine: a process of its own that serves the world's XML."""

import functools
import hashlib
import http.server
import os
import signal
import threading
import time
from pathlib import Path

from tests.faults.world import World

_running: dict[Path, str] = {}


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words) -> None:
        pass


def address(world: World) -> str:
    """The mirror's address; it starts at the first call and ends with this process."""
    if world.path not in _running:
        root = world.path.with_name(f"{world.path.name}-mirror-{os.getpid()}")
        _fill(world, root / "pubmed/baseline")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
        parent = os.getpid()
        if not os.fork():
            _serve(server, parent)
        server.socket.close()
        _running[world.path] = f"http://127.0.0.1:{server.server_port}"
    return _running[world.path]


def _fill(world: World, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, path in enumerate(sorted((world.path / "xml").iterdir()), 1):
        data, name = path.read_bytes(), f"pubmed30n{n:04d}.xml.gz"
        (folder / name).write_bytes(data)
        (folder / f"{name}.md5").write_text(f"MD5({name})= {hashlib.md5(data).hexdigest()}\n")


def _serve(server: http.server.ThreadingHTTPServer, parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)
