"""`run.py import`: a Hugging Face folder, or Model Zoo's `.mdl`, as a checkpoint of ours."""

import os

from modelzoo.config.errors import UserError
from modelzoo.data import hub
from modelzoo.evaluation.inference.exported_files import PICKLED
from modelzoo.interop.importing.hf_folder import CONVERT, import_hf
from modelzoo.interop.importing.mdl_file import import_mdl
from modelzoo.reading import exists
from modelzoo.training.runs.new import require_empty


def import_checkpoint(source: str, out: str, params: str | None = None, weights_only: bool = False) -> str:
    """Write `<out>/checkpoints/step_N` and `<out>/config.yaml` from `source`.

    Args:
        source: a model's folder with safetensors, or a .mdl file.
        params: the config to train on with; a .mdl needs one, a folder replaces its model section.
        weights_only: leave optimizer state out (.mdl).

    Raises:
        UserError: what the source has and a run of ours cannot take, by name; or `out` holds a run already.
    """
    require_empty(out)
    if not exists(source):
        raise UserError(hub.explain_missing(source, "a Hugging Face model's folder, or a .mdl", hub.MODEL))
    if os.path.isdir(source):
        return import_hf(source, out, params)
    if source.endswith((".safetensors", ".json")):
        raise UserError(f"{source}: is a part of a model; name its folder: {os.path.dirname(source) or '.'}")
    if source.endswith(PICKLED):
        raise UserError(f"{source}: is pickled and could run code, so it is not loaded; {CONVERT}")
    if not source.endswith(".mdl"):
        raise UserError(f"{source}: is neither a Hugging Face model's folder nor a .mdl; those can be imported")
    return import_mdl(source, out, params, weights_only)
