"""What would stop the run of a config on this machine, found without torch: the lines that a run would end on.

Data is judged by its manifests; only a run reads what is in it.
"""

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.files import check_some
from modelzoo.data.folder import read_manifest
from modelzoo.planning.plan import Plan
from modelzoo.progress import format_size
from modelzoo.training.trackers import require_packages


def find_problems(config: Config, plan: Plan, on_cpu: bool) -> list[str]:
    """One line a problem, each once.

    Args:
        on_cpu: whether the run takes the memory of this machine.
    """
    found = []
    for _, loader in manifest.list_loaders(config):
        for folder in manifest.list_folders(loader):
            try:
                check_some(folder)
                _check_fit(config, folder)
            except UserError as e:
                found.append(str(e))
    try:
        require_packages(config.trainer.init)
    except UserError as e:
        found.append(str(e))
    need, have = sum(plan.bytes.values()), host.total_memory()
    if on_cpu and have is not None and need > have:
        found.append(
            f"trainer.init.model: the run takes about {format_size(need)}, and this machine has {format_size(have)}; "
            "lower batch_size or micro_batch_size, take backend.activation_checkpointing, or a smaller model"
        )
    return list(dict.fromkeys(found))


def _check_fit(config: Config, folder: str) -> None:
    """Hold a folder's manifest to the model.

    Raises:
        UserError: its vocabulary or its sequences are too large.
    """
    m, recorded = config.trainer.init.model, read_manifest(folder)
    manifest.require_vocabulary(folder, m.vocab_size)
    length = recorded.get("msl")
    if isinstance(length, int):
        manifest.require_positions(folder, length, manifest.count_positions(m))
