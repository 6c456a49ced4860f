"""Starting ranks on one machine: they end together, whatever becomes of one of them or of the process that waits."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelzoo import processes
from modelzoo.config.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and process groups")
REPO = Path(__file__).resolve().parents[1]
# A rank without torch: it writes its number, and does what the word for it says.
RANK = """
import os, pathlib, signal, subprocess, time
folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
word = sys.argv[2 + rank]
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
if word == "deaf":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / f"rank{rank}").write_text(f"{os.getpid()}")
while not all((folder / f"rank{r}").exists() for r in range(len(sys.argv) - 2)):  # none is late to end
    time.sleep(0.01)
if word == "patient":  # a first signal ends it at leisure, a second at once
    while len(seen) < 2:
        time.sleep(0.01)
    sys.exit(9)
while word in ("deaf", "waits"):
    time.sleep(0.01)
    if word == "waits" and seen:
        (folder / f"end{rank}").write_text(f"{seen}")
        sys.exit(143)
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(word))
"""
PARENT = f"""
import sys
from modelzoo import interrupts, processes
processes.GRACE = interrupts.PATIENCE = 2.0
processes.NOTICE = 0.5
sys.exit(processes.start_ranks(sys.argv[1:], len(sys.argv) - 2, {RANK!r}))
"""


class Parent:
    """A process that starts a rank for each word, and waits for them."""

    def __init__(self, folder: Path, *words: str):
        self.folder, self.count = folder, len(words)
        command = [sys.executable, "-c", PARENT, str(folder), *words]
        self.process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True)

    def await_ranks(self) -> list[int]:
        """The numbers of the ranks' processes, once all are there."""
        paths = [self.folder / f"rank{r}" for r in range(self.count)]
        until = time.monotonic() + 60
        while not all(p.exists() and p.read_text() for p in paths):
            assert time.monotonic() < until, self.process.poll()
            time.sleep(0.01)
        return [int(p.read_text()) for p in paths]

    def wait(self) -> tuple[int, list[str]]:
        """Exit code and lines of stderr; the ranks must be gone then."""
        ranks = self.await_ranks()
        _, err = self.process.communicate(timeout=60)
        assert not any(map(group_lives, ranks))
        return self.process.returncode, err.splitlines()


def group_lives(leader: int) -> bool:
    """Whether a process of this session is left, ones that nobody has waited for yet aside."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state not in "ZX":
            return True
    return False


@pytest.mark.parametrize("words,code,lines", [
    (("0", "0"), 0, []),
    (("0", "3"), 3, []),
    (("2", "3"), 2, []),
    (("75", "killed"), 75, ["error: rank 1 was killed by SIGKILL"]),
    (("killed", "waits"), 137, ["error: rank 0 was killed by SIGKILL"]),
    (("waits", "killed"), 137, ["error: rank 1 was killed by SIGKILL"]),
    (("waits", "3"), 3, []),
    (("killed", "deaf"), 137, ["error: rank 0 was killed by SIGKILL",
                               "error: rank 1 did not end within 2 s of another, and was killed"]),
    (("0", "deaf"), 137, ["error: rank 1 did not end within 2 s of another, and was killed"]),
])  # fmt: skip
def test_ranks_end_together_with_one_code(words, code, lines, tmp_path):
    assert Parent(tmp_path, *words).wait() == (code, lines)


def test_signals_go_on_to_all_ranks(tmp_path):
    parent = Parent(tmp_path, "waits", "waits", "waits")
    parent.await_ranks()
    parent.process.send_signal(signal.SIGTERM)
    assert parent.wait() == (143, [])


@pytest.mark.parametrize("second", [("patient", 9), ("deaf", 137)])
def test_a_second_signal_ends_all_at_once(second, tmp_path):
    word, code = second
    parent = Parent(tmp_path, word, word)
    parent.await_ranks()
    parent.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert parent.process.poll() is None  # a first one leaves them the time that their step takes
    parent.process.send_signal(signal.SIGTERM)
    assert parent.wait() == (code, [])


def test_ranks_get_a_sigterm_when_the_process_that_started_them_is_killed(tmp_path):
    parent = Parent(tmp_path, "waits", "waits")
    ranks = parent.await_ranks()
    parent.process.kill()
    parent.process.wait()
    until = time.monotonic() + 20
    while any(map(group_lives, ranks)):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [(tmp_path / f"end{rank}").read_text() for rank in range(2)] == [f"{[int(signal.SIGTERM)]}"] * 2


def test_a_process_of_its_own_is_none_of_the_ranks():
    world = processes.World(1, 4, 1, "a", 1).environment()
    slurm = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "9"}
    assert processes.find_world(world) is not None and processes.find_world(slurm) is not None
    left = processes.leave_ranks({**world, **slurm, "HOME": "/h"})
    assert processes.find_world(left) is None and left["HOME"] == "/h" and left["SLURM_JOB_ID"] == "9"


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "9" * 5000), ("RANK", "²"), ("WORLD_SIZE", "x"), ("MASTER_PORT", "99999")]
)
def test_variables_that_make_no_sense_are_refused_by_name(name, value):
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", name: value}
    with pytest.raises(UserError, match=f"{name}=.*torchrun, or unset it") as e:
        processes.find_world(env)
    assert len(str(e.value)) < 200
