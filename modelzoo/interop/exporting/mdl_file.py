"""A checkpoint as Model Zoo's `.mdl`, with its optimizer state."""

import shlex

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.interop.mdl.file import write_mdl
from modelzoo.interop.mdl.state import convert_to_zoo
from modelzoo.names import is_mask
from modelzoo.planning.start_checkpoint import check_state
from modelzoo.training.checkpoints import checkpoint


def export_mdl(path: str, out: str, config_file: str | None) -> str:
    """Write the checkpoint `path` (a step folder) as the file `out`.

    Args:
        config_file: the run's config, which has the optimizer's settings.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: no config, one of another optimizer, or a parameter that Model Zoo's GPT has not.
    """
    if config_file is None:
        raise UserError(
            f"{path}: has no config.yaml in its run's folder; name the run's config with -p (the optimizer's settings)"
        )
    init = load(config_file, Config).trainer.init
    files, state = checkpoint.load(path)
    saved = check_state(state, path)
    if init.optimizer is None or init.optimizer.name != saved.optimizer:
        raise UserError(f"{config_file}: trainer.init.optimizer: the checkpoint holds {saved.optimizer} state")
    try:
        made = convert_to_zoo(files, state, init)
    except UserError as e:  # of a parameter, which it names
        raise UserError(f"{path}: {e}") from None
    write_mdl(out, made)
    masks = sum(map(is_mask, files["model"]))
    lines = [
        f"wrote      {out}: step {saved.global_step}, {len(files['model']) - masks} weights, {masks} masks, "
        "optimizer state"
    ]
    if any(g.mup_base_density is not None for g in init.sparsity):
        lines.append(f"           mup_base_density's learning-rate factors stay in {config_file}; Model Zoo has none")
    lines.append(f"next       in Model Zoo ckpt_path: {out}")
    lines.append(f"           here {shlex.join(['python', 'run.py', 'import', out, 'RUN', '-p', config_file])}")
    return "\n".join(lines)
