"""What would stop the run of a config on this machine, found without torch: the lines that a run would end on.

Data is judged by its manifests and the shapes of some shards; only a run reads what is in it.
"""

import os

from modelzoo import adapter_files, host
from modelzoo.config.errors import UserError
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.files import check_some, require_agreement
from modelzoo.planning.plan import Plan
from modelzoo.progress import format_size
from modelzoo.training.logs.trackers import require_packages


def find_problems(config: Config, plan: Plan, on_cpu: bool) -> list[str]:
    """One line a problem, each once.

    Args:
        on_cpu: whether the run takes the memory of this machine.
    """
    found = []
    for _, loader in manifest.list_loaders(config):
        shapes = []
        for folder in manifest.list_folders(loader):
            try:
                shapes += _check_fit(config, loader, folder)
            except UserError as e:
                found.append(str(e))
        try:
            require_agreement(shapes)
        except UserError as e:
            found.append(str(e))
    try:
        require_packages(config.trainer.init)
    except UserError as e:
        found.append(str(e))
    for section in (config.trainer.init.lora, config.trainer.init.soft_prompt):
        try:
            if section is not None and section.path is not None:
                adapter_files.find_files(section.path)
        except UserError as e:
            found.append(str(e))
    need, have = sum(plan.bytes.values()), host.total_memory()
    if on_cpu and have is not None and need > have:
        found.append(
            f"trainer.init.model: the run takes about {format_size(need)}, and this machine has {format_size(have)}; "
            "lower batch_size or micro_batch_size, take backend.activation_checkpointing, or a smaller model"
        )
    return list(dict.fromkeys(found))


def _check_fit(config: Config, loader: DataLoader, path: str) -> list[tuple[str, int, int]]:
    """Hold a data folder, or a single shard, to its config.

    Returns:
        Path, rows and length of the shards that were opened.

    Raises:
        UserError: one is damaged or missing, or its vocabulary or its sequences do not fit.
    """
    m = config.trainer.init.model
    shapes = check_some(path, loader.max_sequence_length, loader.use_vsl)
    for name, _, length in shapes[:1]:
        manifest.require_positions(name, length, manifest.count_positions(m))
    manifest.require_vocabulary(path if os.path.isdir(path) else os.path.dirname(path), m.vocab_size)
    return shapes
