"""`run.py export`: a checkpoint as a Hugging Face folder, as GGUF, as ONNX, or as Model Zoo's `.mdl`."""

from modelzoo.config.errors import UserError
from modelzoo.interop.exporting.checkpoint import find_run_config, read_exportable
from modelzoo.interop.exporting.gguf_file import export_gguf
from modelzoo.interop.exporting.hf_folder import export_hf
from modelzoo.interop.exporting.mdl_file import export_mdl
from modelzoo.interop.exporting.onnx_folder import export_onnx
from modelzoo.planning.start_checkpoint import find_checkpoint
from modelzoo.reading import exists

ENDINGS = {"gguf": ".gguf", "mdl": ".mdl"}  # of the formats that are a file; the others are a folder


def export(
    source: str,
    out: str,
    params: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    form: str | None = None,
) -> str:
    """Write the checkpoint `source` (a step folder, or a run folder: its newest) as `out`.

    Args:
        out: a folder to make, or a file name that ends in .mdl or .gguf.
        params: the run's config; default: config.yaml of the run folder.
        tokenizer: a tokenizer.json or a folder with one; default: the training data's.
        dtype: of the weights.
        form: hf, gguf, onnx or mdl; default: what `out` ends in, else hf.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: no whole checkpoint, a model that the format cannot express, or `out` exists.
    """
    form = _choose_format(out, dtype, form)
    path = find_checkpoint(source)
    if exists(out):
        raise UserError(f"{out}: exists; give another name, or remove it first")
    config_file = params or find_run_config(path)
    if form == "mdl":
        return export_mdl(path, out, config_file)
    found = read_exportable(path, config_file, tokenizer)
    if form == "gguf":
        return export_gguf(found, out, dtype)
    if form == "onnx":
        return export_onnx(found, out)
    return export_hf(found, out, dtype)


def _choose_format(out: str, dtype: str, form: str | None) -> str:
    by_name = next((f for f, ending in ENDINGS.items() if out.endswith(ending)), None)
    chosen = form or by_name or "hf"
    if chosen != (by_name or chosen) or chosen in ENDINGS and by_name is None:
        wanted = f"a name that ends in {ENDINGS[chosen]}" if chosen in ENDINGS else "the name of a folder"
        raise UserError(f"--format {chosen}: {out} is to be {wanted}")
    if dtype == "q8_0" and chosen != "gguf":
        raise UserError("--dtype q8_0: is GGUF's alone; name OUT something that ends in .gguf")
    if dtype != "float32" and chosen in ("onnx", "mdl"):
        raise UserError(f"--dtype {dtype}: {chosen} is written in float32")
    return chosen
