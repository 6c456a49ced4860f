"""The step of `-m finetune` lowers from a sparse checkpoint: masks lifted, kept, or opened step by step."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_lowering import TINY

from modelzoo.backends.csx import lowering
from tests.support import examples, write_shard

REPO = Path(__file__).resolve().parents[2]
FINETUNE = TINY[: TINY.index("  fit:")] + "  finetune: {task: nowhere.yaml, batch_size: 2, masks: MODE}\n"


def run(folder: Path, *argv) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "run.py"), *map(str, argv)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


@pytest.fixture(scope="module", params=["", ", block: [8, 8]"], ids=["weights", "blocks"])
def sparse(request, tmp_path_factory) -> Path:
    """A run of one step at 75 %, of single weights and of blocks, which the CS-2 takes once they are kept."""
    folder = tmp_path_factory.mktemp("sparse")
    write_shard(folder / "data/a.h5", examples(8, msl=32, vocab=96))
    (folder / "tiny.yaml").write_text(TINY.replace("/nowhere", str(folder / "data")))
    level = f"trainer.init.sparsity={{sparsity: 0.75, param_filter: '*dense_layer.weight'{request.param}}}"
    done = run(folder, "CPU", "-p", "tiny.yaml", "-m", "train", "-o", "run", "--max_steps", 1, "--set", level)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize(
    "mode,said,masks,moves",
    [
        ("lift", "masks lifted", 0, False),
        ("keep", "masks kept", 4, False),
        ("{open: {steps: 20, freq: 5}}", "masks open over 20 steps", 4, True),
    ],
)
def test_the_step_lowers(sparse, tmp_path, mode, said, masks, moves):
    (tmp_path / "ft.yaml").write_text(FINETUNE.replace("MODE", mode))
    done = run(tmp_path, "CSX", "-p", "ft.yaml", "--validate_only", "--checkpoint_path", sparse, "-o", "out")
    assert done.returncode == 0, done.stderr
    off = int(0.75 * 4 * 32 * 32)
    assert re.search(rf"finetune +{said}: {off:,} weights", done.stderr)
    found = lowering.read(str(tmp_path / "out/cerebras_logs/executors/000001"))
    assert len(found.masked) == masks and all("dense_layer" in n for n in found.masked)
    assert ("live  " in done.stdout) == bool(masks)
    assert any("sort" in op for op in found.torch_ops) == moves
    assert found.torch_ops["embedding_dense_backward"] >= 1  # the step goes backward


def test_masks_are_a_checkpoints(tmp_path):
    (tmp_path / "ft.yaml").write_text(FINETUNE.replace("MODE", "keep"))
    done = run(tmp_path, "CSX", "-p", "ft.yaml", "--validate_only", "-o", "out")
    assert done.returncode == 2 and "trainer.finetune.checkpoint: missing" in done.stderr
    assert "Traceback" not in done.stderr
