"""Imports go strictly down the floors of the design, and packages have empty `__init__.py` files."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

FLOORS = [  # the first match counts; a module may import what stands on a lower floor, or its own package
    ("run", 14), ("modelzoo.__main__", 14), ("modelzoo.library", 14), ("modelzoo.cli", 13), ("modelzoo.words", 12),
    ("modelzoo.flags", 12),
    ("modelzoo.verbs", 11), ("modelzoo.verb_flags", 10), ("modelzoo.tasks", 10), ("modelzoo.pruning", 10),
    ("modelzoo.study", 9), ("modelzoo.finetuning", 9), ("modelzoo.scoring", 9),
    ("modelzoo.generation", 9),
    ("modelzoo.starting", 8),
    ("modelzoo.interop", 8), ("modelzoo.planning", 7), ("modelzoo.training", 6), ("modelzoo.backends", 5),
    ("modelzoo.evaluation", 4), ("modelzoo.train_state", 4),
    ("modelzoo.models", 3), ("modelzoo.data", 3), ("modelzoo.optim", 3), ("modelzoo.sparsity", 3),
    ("modelzoo.checksums", 3),
    ("modelzoo.kernels", 2), ("modelzoo.progress", 2), ("modelzoo.names", 2), ("modelzoo.lock", 2),
    ("modelzoo.draws", 2), ("modelzoo.share", 2), ("modelzoo.modes", 2), ("modelzoo.records", 2),
    ("modelzoo.joining", 4), ("modelzoo.distributed", 3), ("modelzoo.processes", 2),
    ("modelzoo.config.errors", 0), ("modelzoo.config", 1), ("modelzoo.files", 1), ("modelzoo.entry", 1),
    ("modelzoo.adapter_files", 4), ("modelzoo.sink", 1), ("modelzoo.folders", 0), ("modelzoo.interrupts", 0),
    ("modelzoo.host", 0), ("modelzoo.finite", 0), ("modelzoo.version", 0), ("modelzoo.reading", 0),
    ("modelzoo.redact", 0),
    ("data_preprocessing.__main__", 8), ("data_preprocessing.cli", 7), ("data_preprocessing.inspection", 6),
    ("data_preprocessing.verbs", 5), ("data_preprocessing.jobs", 4), ("data_preprocessing.steps", 3),
    ("data_preprocessing.downloading", 3), ("data_preprocessing.sources", 2), ("data_preprocessing.tokens", 2),
    ("data_preprocessing.idle", 2),
    ("data_preprocessing.config", 1), ("data_preprocessing.job_flags", 1),
    ("data_preprocessing.inputs", 1), ("data_preprocessing.text", 1),
    ("data_preprocessing.reports", 1), ("data_preprocessing.limits", 0),
]  # fmt: skip
ROOMS = {  # the floors inside of a package that has rooms of its own
    "modelzoo.evaluation": {
        "scores": 5, "prompts": 4, "forms": 3, "inference": 3, "tasks": 2, "official": 2, "examples": 1,
        "statistics": 1,
    },
    "modelzoo.interop": {
        "exporting": 3, "importing": 3, "adapters": 2, "gguf": 2, "cards": 1, "hf": 1, "mdl": 1,
    },
    "modelzoo.study": {"execution": 5, "reports": 4, "figures": 3, "matrix": 2, "runs": 1},
    "modelzoo.training": {
        "launch": 6, "loop": 5, "saves": 4, "logs": 3, "console": 3, "shortage": 3, "runs": 2, "checkpoints": 1,
        "build": 1, "validation": 1, "signals": 1, "nonfinite": 1,
    },
    "modelzoo.backends": {
        "select": 5, "csx": 4, "local": 4, "step": 3, "sharding": 2, "reduction": 2, "peaks": 2, "base": 1,
        "abilities": 0, "arithmetic": 0, "batch_shares": 0, "graphs": 0,
    },
    "modelzoo.config": {
        "required": 6, "differences": 6, "trainer": 5, "legacy": 4, "study": 4, "task": 4, "sections": 3, "idle": 3,
        "loading": 2, "arguments": 2, "values": 1, "errors": 0,
    },
    "modelzoo.kernels": {
        "attention": 4, "cross_entropy": 4, "products": 4, "few": 3, "triton": 3, "blocks": 2, "compiled": 1,
        "limits": 0, "processor": 0,
    },
}  # fmt: skip
ROOTS = ("modelzoo", "data_preprocessing")
PACKAGES = {name for name, _ in FLOORS if (REPO / name.replace(".", "/")).is_dir()}


def floor(module: str) -> int:
    return next(f for name, f in FLOORS if module == name or module.startswith(name + "."))


def package(module: str) -> str | None:
    return next((p for p in PACKAGES if module == p or module.startswith(p + ".")), None)


def sources() -> list[tuple[str, Path]]:
    files = [REPO / "run.py", *(f for root in ROOTS for f in sorted((REPO / root).rglob("*.py")))]
    return [(".".join(f.relative_to(REPO).with_suffix("").parts), f) for f in files if f.name != "__init__.py"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("module,path", sources(), ids=[m for m, _ in sources()])
def test_imports_go_down(module, path):
    root = module.split(".")[0] if module != "run" else "modelzoo"
    for name in imports(path):
        assert root == "data_preprocessing" or not name.startswith("data_preprocessing"), f"{module} imports {name}"
        if name.startswith(f"{root}.") and package(name) != package(module):
            assert floor(name) < floor(module), f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})"
        elif name.startswith(f"{root}.") and package(name) is None:
            assert floor(name) < floor(module) or name.startswith(module), f"{module} imports {name}"


@pytest.mark.parametrize("house", ROOMS)
def test_imports_go_down_inside(house):
    """From room to room of a package with rooms; in one room as its files like."""
    floors = ROOMS[house]
    assert set(floors) == {p.stem for p in (REPO / house.replace(".", "/")).iterdir() if p.name[0] != "_"}
    for module, path in sources():
        if module.startswith(f"{house}."):
            room = module.split(".")[2]
            for other in {n.split(".")[2] for n in imports(path) if n.startswith(f"{house}.")} - {room}:
                assert floors[other] < floors[room], f"{module} imports of {other}"


def test_only_one_module_names_cerebras():
    users = [m for m, p in sources() if any(i.split(".")[0] == "cerebras" for i in imports(p))]
    assert set(users) <= {"modelzoo.backends.csx.library"}


def test_preprocessing_stands_on_config_host_format_and_tokenizer_alone():
    for path in sorted((REPO / "data_preprocessing").rglob("*.py")):
        for name in imports(path):
            assert name.split(".")[0] != "torch", path
            if name.startswith("modelzoo"):
                known = (
                    "modelzoo.config",
                    "modelzoo.entry",
                    "modelzoo.host",
                    "modelzoo.interrupts",
                    "modelzoo.reading",
                    "modelzoo.records",
                    "modelzoo.redact",
                    "modelzoo.version",
                    "modelzoo.files",
                    "modelzoo.folders",
                    "modelzoo.lock",
                    "modelzoo.progress",
                    "modelzoo.share",
                    "modelzoo.sink",
                    "modelzoo.data.folder",
                    "modelzoo.data.format",
                    "modelzoo.data.hub",
                    "modelzoo.data.side_files",
                    "modelzoo.data.storage",
                    "modelzoo.data.tokenizer",
                    "modelzoo.kernels.processor",
                )
                assert name.startswith(known), (path, name)


def test_packages_are_empty():
    """But for the names of `import modelzoo`, which import nothing before they are used."""
    door = REPO / "modelzoo" / "__init__.py"
    for path in [*(REPO / "modelzoo").rglob("__init__.py"), *(REPO / "data_preprocessing").rglob("__init__.py")]:
        assert path == door or path.read_text(encoding="utf-8") == "", path
    top = ast.parse(door.read_text(encoding="utf-8")).body
    assert [ast.unparse(x) for x in top if isinstance(x, ast.Import | ast.ImportFrom)] == [
        "from typing import TYPE_CHECKING, Any"
    ]
