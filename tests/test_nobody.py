"""A user whom passwd does not know, without a home, semaphores or UTF-8: commands work, and say what they lack."""

import json
import os
import textwrap

import pytest
import yaml

from tests.test_host import DATA, REPO, RUN, python

NOBODY = """  # a user whom passwd does not know
import pwd, sys
def unknown(*_): raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = unknown
"""
NO_SEMAPHORES = """
import _multiprocessing
class Closed(_multiprocessing.SemLock):
    def __new__(cls, *_): raise PermissionError(13, "Permission denied")
_multiprocessing.SemLock = Closed
"""
END = "-- end of a command"
EACH = f"""  # one command after the other
import json
from modelzoo.cli import main
for words in sys.argv[1:]:
    assert main(json.loads(words)) == 0
    print("{END}", file=sys.stderr)
"""


def test_libraries_find_a_home_and_a_name(tmp_path):
    code = NOBODY + textwrap.dedent("""
        from modelzoo import host
        host.prepare_process([])
        import getpass, os, pathlib
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
        print(pathlib.Path.home(), getpass.getuser(), os.path.basename(default_cache_dir()))
    """)
    done = python(code, TMPDIR=str(tmp_path))
    name = f"uid{os.getuid()}"
    assert done.stdout.split() == [str(tmp_path / f"mediswift-{os.geteuid()}"), name, f"torchinductor_{name}"]
    assert done.stderr == ""


@pytest.mark.slow
def test_commands_work_for_nobody_without_semaphores_or_utf8(tmp_path):
    """Preprocessing with a pool, training with workers, comparison, export: each works and says what it lacks."""
    lines = (f"na\u00efve \u03b2-blocker no. {i} \u2265 5 \u00b5g " + 9 * "and so on " for i in range(99))
    text = "".join(f'{{"text": "{line}"}}\n' for line in lines)
    for part in "ab":
        (tmp_path / f"{part}.jsonl").write_text(text, encoding="utf-8")
    lacking = NOBODY + NO_SEMAPHORES
    temp, data, run = tmp_path / "tmp", tmp_path / "data", tmp_path / "run"
    temp.mkdir()

    def command(code, *words):
        done = python(lacking + code, *map(str, words), TMPDIR=str(temp))
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done

    words = ["--tokenizer", "train", "--vocab_size", 300, "--msl", 16, "--workers", 2]
    said = command(DATA, "jsonl", "--input", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--output", data, *words)
    assert "cannot be started" not in said.stderr  # its workers share nothing but pipes
    assert r"\u03b2-blocker" in command(DATA, "inspect", data / "train").stdout
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "filter_size": 64, "vocab_size": 300}
    config = {"trainer": {
        "init": {
            "model": {**model, "max_position_embeddings": 16},
            "optimizer": {"AdamW": {"lr": 0.01}}, "loop": {"max_steps": 2}, "precision": {"enabled": False},
        },
        "fit": {
            "train_dataloader": {"data_dir": str(data / "train"), "batch_size": 4, "num_workers": 2},
            "val_dataloader": {"data_dir": str(data / "val"), "batch_size": 4},
        },
    }}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "parameters" in command(RUN, "CPU", "-p", tmp_path / "c.yaml", "-m", "plan").stdout
    said = command(RUN, "CPU", "-p", tmp_path / "c.yaml", "-m", "train_and_eval", "-o", run)
    assert "2 data workers cannot be started here ([Errno 13] Permission denied): this process reads" in said.stderr
    assert (run / "checkpoints" / "step_2" / "manifest.json").exists()
    verbs = [("compare", run, "-o", tmp_path / "c.svg"), ("export", run, tmp_path / "exported"),
             ("report", run, "-o", tmp_path / "report.html")]  # fmt: skip
    said = command(EACH, *(json.dumps([*map(str, words)]) for words in verbs))
    assert said.stderr.startswith(f"{END}\n")  # of the comparison: nothing
    assert (tmp_path / "c.svg").stat().st_size > 1000
    known = {f"mediswift-{os.geteuid()}", f"torchinductor_uid{os.getuid()}"}
    assert not (REPO / "~").exists() and {path.name for path in temp.iterdir()} <= known
