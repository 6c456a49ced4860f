"""Which files an adapter's folder holds: PEFT's layout, or ours for a soft prompt that has no form there. No torch."""

import os
from typing import Any

from modelzoo.checksums import check_checksums
from modelzoo.config.errors import UserError
from modelzoo.reading import exists
from modelzoo.records import read_json

PEFT_FILES = "adapter_config.json", "adapter_model.safetensors"
OUR_FILES = "soft_prompt.json", "soft_prompt.safetensors"
NO_ADAPTER = "is not the config of an adapter"


def find_files(folder: str) -> tuple[dict[str, Any], str, str]:
    """The config of an adapter, its path, and the path of its tensors, which are not read.

    Raises:
        UserError: no such files, tensors that are pickled, or a config that is none.
    """
    names = next((n for n in (PEFT_FILES, OUR_FILES) if exists(os.path.join(folder, n[0]))), None)
    if names is None:
        raise UserError(f"{folder}: holds neither {PEFT_FILES[0]} nor {OUR_FILES[0]}; name an adapter's folder")
    check_checksums(folder)
    config, weights = (os.path.join(folder, n) for n in names)
    if not exists(weights):
        if exists(pickled := os.path.join(folder, "adapter_model.bin")):
            raise UserError(
                f"{pickled}: is pickled and could run code, so it is not loaded; convert it to safetensors first: load "
                "it where you trust it, and model.save_pretrained(FOLDER)"
            )
        raise UserError(f"{weights}: missing")
    found = read_json(config, "missing")
    if not isinstance(found, dict):
        raise UserError(f"{config}: {NO_ADAPTER}")
    return found, config, weights
