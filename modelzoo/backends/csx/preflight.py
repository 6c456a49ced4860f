"""Before anything goes to a CS-2 cluster: is one there, would it take this job, and what would it be sent. No torch.

The client library finds out most of this itself, minutes later and one thing at a time.
"""

import importlib.metadata
import importlib.util
import os
import re
import socket
from pathlib import Path

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.sections.device import Backend
from modelzoo.config.trainer import Config
from modelzoo.reading import is_number

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
CLUSTER_FILE = "/opt/cerebras/config_v2"
DEFAULTS = "CEREBRAS_WAFER_SCALE_CLUSTER_DEFAULTS"  # the zoo's variable: a YAML of backend keys for all jobs of a site
RELEASE = "2.10.0"
LABEL = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$")  # Kubernetes' own rule
REPO = Path(__file__).resolve().parents[3]

INSTALL = "`make env-csx` installs it next to the main environment; then run .venv-csx/bin/python run.py CSX ..."
WAYS_OUT = (
    "give a cluster with --mgmt_address HOST:PORT, or check the job without one with `CSX --validate_only`, "
    "or train on this machine with `auto` or `CPU`"
)


def explain_missing_library() -> str | None:
    """Why cerebras.pytorch cannot be imported here, or None."""
    if importlib.util.find_spec("cerebras") is None:
        return f"cerebras_pytorch is not installed in this environment; {INSTALL}"
    return None


def explain_missing_cluster(config: Backend) -> str | None:
    """Why no CS-2 can be used from here, or None if one answers. At most one second.

    Looks for an address (config, then $CSCONFIG_PATH or /opt/cerebras/config_v2, then a Kubernetes service account) and
    tries a short TCP connection where there is one; only then asks for the client library.
    """
    address = config.mgmt_address
    file = os.environ.get("CSCONFIG_PATH", CLUSTER_FILE)
    in_cluster = bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and os.path.exists(TOKEN)
    if not address and not os.path.exists(file) and not in_cluster:
        return f"no cluster is configured (no mgmt_address, no {file})"
    if address and (why := _unreachable(address)):
        return f"the cluster at {address[:80]!a} does not answer ({why})"
    return explain_missing_library()


def _unreachable(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    if not host or not is_number(port, 5):
        return "mgmt_address takes HOST:PORT"
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return None
    except OSError as e:
        return str(e.strerror or e).lower()
    except (UnicodeError, OverflowError):  # a part of the host is longer than 63 characters; a port above 65535
        return "mgmt_address takes HOST:PORT"


def require_cluster(config: Backend) -> None:
    """Stop an explicit CSX job where no cluster is.

    Raises:
        UserError: the reason, and the ways out.
    """
    if why := explain_missing_cluster(config):
        raise UserError(f"CSX: {why}; {WAYS_OUT}")


def add_site_defaults(config: Backend) -> Backend:
    """The backend section with the site's defaults: single values where none was given, folders added to the given.

    Raises:
        UserError: the file that the variable names is missing or holds unknown keys.
    """
    path = os.environ.get(DEFAULTS)
    if not path:
        return config
    site, own = load(path, Backend), config.model_dump(exclude_unset=True)
    merged = {**site.model_dump(exclude_unset=True), **own}
    for key in ("mount_dirs", "python_paths"):
        merged[key] = tuple(dict.fromkeys((*getattr(config, key), *getattr(site, key))))
    return Backend.model_validate(merged)


def check_job(config: Config, backend: Backend, compile_only: bool = False) -> list[str]:
    """Check everything about a job that can be checked from here.

    Args:
        config: the whole config.
        backend: its backend section, site defaults included.
        compile_only: such a job reads no data, so what is wrong with its folders is reported and not refused.

    Returns:
        Lines that say what was checked.

    Raises:
        UserError: all problems at once, each with its key.
    """
    problems: list[str] = []
    where = "trainer.init.backend"
    for key in ("mount_dirs", "python_paths"):
        problems += [f"{where}.{key}: {p} does not exist" for p in getattr(backend, key) if not os.path.exists(p)]
    if backend.credentials_path and not os.path.isfile(backend.credentials_path):
        problems.append(f"{where}.credentials_path: {backend.credentials_path} does not exist")
    for label in backend.job_labels:
        parts = label.split("=")
        if len(parts) != 2 or not all(LABEL.match(p) for p in parts):
            problems.append(f"{where}.job_labels: {label!r} is not key=value of letters, digits, '-', '_' and '.'")
    problems += _versions(backend)
    precision = config.trainer.init.precision
    if precision.enabled and precision.fp16_type == "cbfloat16" and precision.loss_scaling_factor != "dynamic":
        problems.append(
            "trainer.init.precision.loss_scaling_factor: cbfloat16 overflows and underflows without a dynamic loss "
            "scale; set it to dynamic"
        )
    fit, folders = config.trainer.fit, []
    if fit is not None:
        folders = _folders(fit.train_dataloader, backend)
        problems += _batch(fit.train_dataloader, backend) + ([] if compile_only else folders)
    if problems:
        raise UserError("\n".join(problems))
    lines = ["the cluster answers"] if backend.mgmt_address else []
    lines += ["versions match", f"{len(backend.mount_dirs)} mounts and {len(backend.python_paths)} python paths exist"]
    if fit is not None:
        data = "data is mounted" if backend.mount_dirs else "data exists (mounting it is left to the cluster)"
        lines.append(f"{backend.num_csx} systems share a batch of {fit.train_dataloader.batch_size}")
        lines += [f"-m train would stop: {x}" for x in folders] or [data]
    return lines


def _versions(backend: Backend) -> list[str]:
    if backend.disable_version_check:
        return []
    have = importlib.metadata.version("cerebras_pytorch")
    if have != RELEASE:
        return [f"cerebras_pytorch {have} is installed, this trainer needs {RELEASE}; run `make env-csx`"]
    return []


def _batch(loader: DataLoader, backend: Backend) -> list[str]:
    if loader.batch_size % backend.num_csx == 0:
        return []
    return [
        f"trainer.fit.train_dataloader.batch_size: {loader.batch_size} does not share out to {backend.num_csx} systems"
    ]


def _folders(loader: DataLoader, backend: Backend) -> list[str]:
    """The input workers run on the cluster: they see what is mounted there and nothing else."""
    where, problems = "trainer.fit.train_dataloader", []
    folders = [d for m in loader.mixture or () for d in m.data_dir] if loader.mixture else loader.data_dir or ()
    for folder in folders:
        if not os.path.exists(folder):
            problems.append(f"{where}.data_dir: {folder} does not exist")
        elif backend.mount_dirs and not any(_inside(folder, m) for m in backend.mount_dirs):
            problems.append(
                f"{where}.data_dir: {folder} lies in none of the mounted folders ({', '.join(backend.mount_dirs)}); "
                "add it to trainer.init.backend.mount_dirs"
            )
        elif not os.path.isabs(folder):
            problems.append(f"{where}.data_dir: {folder} is relative; workers on the cluster start elsewhere")
    return problems


def _inside(folder: str, mount: str) -> bool:
    return Path(folder).resolve().is_relative_to(Path(mount).resolve())


def describe_transfer(config: Config, backend: Backend, compile_only: bool) -> str:
    """What a job sends to the cluster, as a person reads it before it goes."""
    fit = config.trainer.fit
    lines = [
        f"sends      to {backend.mgmt_address or 'the cluster of this machine'}:",
        "           your user name and id, this machine's name, load and folder; "
        f"labels {', '.join(backend.job_labels) or 'none'}, priority {backend.job_priority or 'p2'}, "
        f"time limit {backend.job_time_sec or 'none'}",
        "           the program of one training step (CIRH: names and shapes of all tensors, source lines; no "
        f"weights), batch {fit.train_dataloader.batch_size if fit else '?'}, {backend.num_csx} systems",
    ]
    if not compile_only:
        lines += [
            "           this machine's `pip freeze` and `pip config list` (index URLs included, with any user names "
            "and tokens in them)",
            "           all weights, masks and optimizer state; the input function with its config",
            f"           workers there read {', '.join(backend.mount_dirs) or 'what the cluster mounts by itself'}",
            f"           and import from {', '.join((*backend.python_paths, str(REPO)))}",
        ]
    return "\n".join(lines)
