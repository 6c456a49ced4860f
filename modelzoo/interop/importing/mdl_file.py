"""Model Zoo's `.mdl` as a run of ours."""

import shlex

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.sections.model import find_difference
from modelzoo.config.trainer import Config
from modelzoo.interop.cards.origin import WRITER
from modelzoo.interop.mdl.file import read_mdl
from modelzoo.interop.mdl.state import SECTIONS, convert_from_zoo
from modelzoo.names import is_mask
from modelzoo.training.build import open_shards
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.new import write_run


def import_mdl(source: str, out: str, params: str | None, weights_only: bool) -> str:
    """Write the run `out` from the file `source`; arguments as `import_checkpoint` takes them.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: no config, or weights, masks or optimizer state that do not fit it.
    """
    if params is None:
        raise UserError(f"{source}: a .mdl does not hold its model's config; name the run's config with -p")
    config = load(params, Config)
    init = config.trainer.init
    sections = [s for s in SECTIONS if not (weights_only and s == "optimizer")]
    dataset, why = _dataset(config)
    files, state = convert_from_zoo(source, read_mdl(source, sections), init, dataset)
    if different := find_difference(state["model"], init.model):
        key, theirs, ours = different
        raise UserError(f"{source}: was trained with model.{key} {theirs}, {params} says {ours}; take the file's value")
    if weights_only:
        files = {"model": files["model"], "optimizer": {}}
    path = write_run(out, files, state, config, WRITER)
    masks = sum(map(is_mask, files["model"]))
    lines = [f"wrote      {path}: {len(files['model']) - masks} weights, {masks} masks, step {state['global_step']}"]
    whole = bool(files["optimizer"])
    if not whole:
        lines.append("           no optimizer state")
    if state["dataset"].startswith("unknown"):
        whole = False
        lines.append(f"           its position in the data is unknown: {why}")
    if bool(masks) != bool(init.sparsity):
        problem = "is sparse, the config is dense" if masks else "is dense, the config is sparse"
        lines.append(f"           the checkpoint {problem}: change trainer.init.sparsity, or load its model alone")
    states = "" if whole else " --load_checkpoint_states model" + (",sparsity" if masks else "")
    states = "" if whole else f" --checkpoint_path {shlex.quote(path)}{states}"
    command = shlex.join(["python", "run.py", "-p", RunFolder(out).config, "-m", "train", "-o", out])
    lines.append(f"next       {command}{states}")
    return "\n".join(lines)


def _dataset(config: Config) -> tuple[str | None, str]:
    """The fingerprint of the config's training data, whose position the step counts; or why there is none."""
    if config.trainer.fit is None:
        return None, "the config has no fit.train_dataloader"
    try:
        return open_shards(config, config.trainer.fit.train_dataloader).fingerprint(), ""
    except UserError as e:
        return None, str(e).splitlines()[0]
