"""The C++ kernels on AArch64, under an emulator, against float64: `make test-aarch64`. Not collected by `make test`.

Cases are made and results compared here, by NumPy: no torch for AArch64 is needed. What a float32 sum of k products may
be off by follows from k, whatever its order: |error| <= k eps sum |a b| to first order, with eps = 2^-24 (Higham,
Accuracy and Stability of Numerical Algorithms, 3.1).
"""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from modelzoo.kernels.compiled.build import FLAGS
from modelzoo.kernels.processor import FLAGS as CLASSES

HERE = Path(__file__).parent
SOURCES = Path(__file__).resolve().parents[3] / "modelzoo" / "kernels" / "compiled" / "csrc"
KINDS = {"block": "OF_WEIGHTS", "single": "OF_WEIGHTS", "softmax": "OF_LOGITS", "rows": "OF_ROWS"}
EPS = 2.0**-24
TINY = 2.0**-126  # what may be flushed to zero
BLOCKS = [(32, 1), (32, 2), (32, 3), (64, 1), (32, 32), (64, 64), (32, 64), (64, 32), (96, 16)]
NATIVE = platform.machine() == "aarch64"
COMPILER, EMULATOR = ("g++", []) if NATIVE else ("aarch64-linux-gnu-g++", ["qemu-aarch64"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(source's name, bytes of cases) -> bytes of results."""
    folder, made = tmp_path_factory.mktemp("aarch64"), {}

    def call(name: str, cases: bytes) -> bytes:
        if name not in made:
            compile_harness(name, folder / name)
            made[name] = folder / name
        done = subprocess.run([*EMULATOR, made[name]], input=cases, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return call


def compile_harness(name: str, to: Path) -> None:
    assert shutil.which(COMPILER), f"no {COMPILER}: see `make test-aarch64`"
    defines = [f'-DKERNEL="{name}.cpp"', f"-DNAME={name}", f"-D{KINDS[name]}"]
    flags = [*FLAGS, *CLASSES["neon"], "-static", f"-I{SOURCES}", *defines]
    subprocess.run([COMPILER, *flags, HERE / "harness.cpp", "-o", to], check=True)


def header(*sides: int) -> bytes:
    return np.array([*sides, *[0] * (8 - len(sides))], np.int64).tobytes()


def split(data: bytes, *arrays: tuple) -> list[np.ndarray]:
    """The bytes as arrays of (shape, dtype), all of them used."""
    found, at = [], 0
    for shape, dtype in arrays:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found.append(np.frombuffer(data[at : at + size], dtype).reshape(shape))
        at += size
    assert at == len(data)
    return found


def hold(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> None:
    error = np.abs(got.astype(np.float64) - want)
    assert got.shape == want.shape
    assert np.all(error <= bound), f"off by {np.max(error - bound):.3g} more than it may be"


def products(run, name: str, block, rows: int, cols: int, density: float, n: int, threads: int = 1) -> None:
    """A random pattern of live blocks, and its four products held to float64."""
    (R, C), draw = block, np.random.default_rng([*block, rows, cols, n])
    out, inputs = rows * max(R, 32), cols * int(np.lcm(C, 32))
    live = draw.random((out // R, inputs // C)) < density
    at_rows, at_cols = np.nonzero(live)
    by_column = np.lexsort((at_rows, at_cols))
    pointers = [np.concatenate([[0], np.cumsum(live.sum(axis))]) for axis in (1, 0)]
    index = [pointers[0], at_cols, pointers[1], at_rows[by_column], by_column]
    values, x, dy, bias = (
        draw.standard_normal(shape).astype(np.float32)
        for shape in ((len(at_rows), R, C), (n, inputs), (n, out), (out,))
    )
    case = header(out, inputs, R, C, len(at_rows), n, threads)
    case += b"".join(part.astype(np.int32).tobytes() for part in index)
    case += b"".join(part.tobytes() for part in (values, x, dy, bias))
    f = np.float32
    y, bare, dx, dvalues = split(
        run(name, case), ((n, out), f), ((n, out), f), ((n, inputs), f), ((len(at_rows), R, C), f)
    )
    dense = np.zeros((out // R, R, inputs // C, C))
    dense[at_rows, :, at_cols, :] = values
    dense = dense.reshape(out, inputs)
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    live_inputs, live_outputs = live.sum(1).max(initial=0) * C, live.sum(0).max(initial=0) * R
    sizes = np.abs(x) @ np.abs(dense.T)
    hold(bare, x @ dense.T, (live_inputs + 1) * EPS * sizes)
    hold(y, x @ dense.T + bias, (live_inputs + 2) * EPS * (sizes + np.abs(bias)))
    hold(dx, dy @ dense, (live_outputs + 1) * EPS * (np.abs(dy) @ np.abs(dense)))

    def of_blocks(full: np.ndarray) -> np.ndarray:
        return full.reshape(out // R, R, inputs // C, C)[at_rows, :, at_cols, :]

    hold(dvalues, of_blocks(dy.T @ x), (n + 1) * EPS * of_blocks(np.abs(dy).T @ np.abs(x)))


@pytest.mark.parametrize("n", [1, 7, 97, 200])
@pytest.mark.parametrize("block", [(1, 1), *BLOCKS], ids=str)
def test_products_equal_float64(run, block, n):
    for density in (0.0, 0.3, 1.0):
        products(run, "single" if block == (1, 1) else "block", block, 3, 2, density, n)


@pytest.mark.parametrize("block", [(1, 1), (32, 1), (32, 32)], ids=str)
def test_threads_share_the_work(run, block):
    products(run, "single" if block == (1, 1) else "block", block, 8, 6, 0.25, 300, threads=3)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16, as its 16 bits."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("n,vocab", [(1, 1), (3, 7), (5, 64), (4, 1003), (2, 5000)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_cross_entropy_equals_float64(run, half, n, vocab, scale):
    draw = np.random.default_rng([n, vocab])
    logits = (scale * draw.standard_normal((n, vocab))).astype(np.float32)
    raw, dtype = (bfloat16(logits), np.uint16) if half else (logits, np.float32)
    logits = (widened(raw) if half else raw).astype(np.float64)
    labels = draw.integers(0, vocab, n)
    case = header(n, vocab, 2, int(half)) + raw.tobytes() + labels.tobytes()
    of = ((n, vocab), dtype)
    losses, again, kept, gradient = split(run("softmax", case), ((n,), np.float32), ((n,), np.float32), of, of)
    assert np.array_equal(kept, raw) and np.array_equal(losses, again)
    gradient = widened(gradient) if half else gradient
    top = logits.max(1, keepdims=True)
    exp = np.exp(logits - top)
    total = exp.sum(1, keepdims=True)
    p, at = exp / total, (np.arange(n), labels)
    want = p.copy()
    want[at] -= 1
    # e^x is good to two units in the last place, x - top is rounded before, and a sum runs over vocab.
    relative = (4 + top - logits) * EPS
    of_sum = (exp * relative).sum(1) / total[:, 0] + vocab * EPS
    sizes = np.abs(top[:, 0]) + np.abs(logits[at]) + np.log(total[:, 0])
    hold(losses, np.log(total[:, 0]) + top[:, 0] - logits[at], of_sum + 4 * EPS * sizes + TINY)
    bound = p * (relative + of_sum[:, None] + 3 * EPS) + EPS * (want < 0) + 2 * TINY
    hold(gradient, want, bound + (2.0**-8 * np.abs(want) if half else 0))


@pytest.mark.skipif(not (SOURCES / "rows.cpp").exists(), reason="no such kernel")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("n,dim", [(1, 32), (7, 33), (300, 96)])
def test_sums_over_rows_equal_float64(run, half, n, dim):
    x = np.random.default_rng([n, dim]).standard_normal((n, dim)).astype(np.float32)
    raw = bfloat16(x) if half else x
    x = (widened(raw) if half else x).astype(np.float64)
    (sums,) = split(run("rows", header(n, dim, 2, int(half)) + raw.tobytes()), ((dim,), np.float32))
    hold(sums, x.sum(0), (n + 1) * EPS * np.abs(x).sum(0))


def test_every_kernel_is_checked_here():
    assert {path.stem for path in SOURCES.glob("*.cpp")} <= set(KINDS)


def test_a_broken_kernel_is_found(run, tmp_path, monkeypatch):
    """One accumulator of the register tile dropped: the bounds are narrow enough to see it."""
    broken = tmp_path / "csrc"
    shutil.copytree(SOURCES, broken)
    text = (broken / "units.h").read_text(encoding="utf-8")
    assert text.count("return acc + a * b;") == 1
    (broken / "units.h").write_text(
        text.replace("return acc + a * b;", "return acc + a * b * 1.00001f;"), encoding="utf-8"
    )
    monkeypatch.setitem(globals(), "SOURCES", broken)
    compile_harness("block", tmp_path / "harness")

    def call(name, cases):
        return subprocess.run([*EMULATOR, tmp_path / "harness"], input=cases, capture_output=True, check=True).stdout

    with pytest.raises(AssertionError, match="more than it may be"):
        products(call, "block", (32, 32), 3, 2, 0.3, 97)
