"""Lowers configs, each in a process of its own (cerebras.pytorch has one backend a process); prints a JSON line each.

Usage: lower_cases.py FOLDER CASES.json     cases: {name: [config file, [overrides], activation or null]}
"""

import contextlib
import io
import json
import os
import sys
import time

import torch

import modelzoo.backends.csx.backend  # noqa: F401  imported once, before the forks
import modelzoo.models.decoder as decoder
from modelzoo.backends.csx import lowering
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.shapes import list_with_adapters
from modelzoo.tasks import lower
from modelzoo.training.build import Options

ACTIVATIONS = {"erfinv": torch.special.erfinv, "lgamma": torch.lgamma, "branch": lambda x: x if x.sum() > 0 else -x}


def one(name: str, file: str, overrides: list[str], activation: str | None, folder: str) -> dict:
    begin = time.perf_counter()
    if activation:
        decoder.ACTIVATIONS["gelu"] = ACTIVATIONS[activation]
    out = io.StringIO()
    try:
        config = load(file, Config, overrides)
        with contextlib.redirect_stdout(out):
            lower.lower_step(config, Options(target="CSX", model_dir=folder), compile_only=False)
    except UserError as e:
        return {"name": name, "error": str(e)}
    found = lowering.read(os.path.join(folder, "cerebras_logs", "executors", "000001"))
    return {
        "name": name,
        "said": out.getvalue(),
        "parameters": found.weights(list_with_adapters(config.trainer.init)),
        "masked": found.masked,
        "torch": dict(found.torch_ops),
        "cirh": dict(found.cirh_ops),
        "seconds": time.perf_counter() - begin,
    }


def main(folder: str, cases: dict) -> None:
    running: dict[int, str] = {}
    for i, (name, (file, overrides, activation)) in enumerate(cases.items()):
        while len(running) >= 2:
            running.pop(os.wait()[0])
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                result = one(name, file, overrides, activation, os.path.join(folder, str(i)))
                with open(os.path.join(folder, f"{i}.json"), "w") as file:
                    json.dump(result, file)
            os._exit(0)
        running[pid] = name
    while running:
        running.pop(os.wait()[0])
    for i, name in enumerate(cases):
        path = os.path.join(folder, f"{i}.json")
        if os.path.exists(path):
            with open(path) as file:
                print(file.read())
        else:
            print(json.dumps({"name": name, "error": "the process died"}))


if __name__ == "__main__":
    with open(sys.argv[2]) as cases_file:
        main(sys.argv[1], json.load(cases_file))
