"""What a config asks of cerebras.pytorch: the cluster, the precision, compile flags, how batches are cut."""

from modelzoo.backends.csx import preflight
from modelzoo.backends.csx.library import cstorch
from modelzoo.config.errors import UserError
from modelzoo.config.sections.device import Backend
from modelzoo.config.trainer import Init


def make_cluster(config: Backend):
    """The cluster of a complete backend section, as cerebras.pytorch takes it.

    Raises:
        UserError: a setting of `cluster_config` is unknown or has a wrong type.
    """
    try:
        return cstorch.distributed.ClusterConfig(
            mgmt_address=config.mgmt_address,
            credentials_path=config.credentials_path,
            num_csx=config.num_csx,
            num_workers_per_csx=config.num_workers_per_csx or 1,
            job_labels=list(config.job_labels),
            job_priority=config.job_priority or "p2",
            job_time_sec=config.job_time_sec,
            mount_dirs=list(config.mount_dirs),
            python_paths=[*config.python_paths, str(preflight.REPO)],
            disable_version_check=config.disable_version_check,
            **(config.cluster_config or {}),
        )
    except (TypeError, ValueError) as e:
        raise UserError(f"trainer.init.backend: {e}") from None


def set_precision(init: Init) -> list[str]:
    """Set the wafer's 16-bit format and optimisation level; returns a note on each setting that has no effect there."""
    precision, notes = init.precision, []
    cstorch.amp.set_half_dtype(precision.fp16_type)
    if not precision.enabled:
        notes.append(f"the CS-2 always computes in mixed precision; {precision.fp16_type} here")
    if precision.emulate:
        notes.append("precision.emulate has no effect: the CS-2 multiplies its 16-bit formats")
    if init.loop.grad_accum_steps > 1:
        notes.append("grad_accum_steps has no effect: the CS-2's compiler cuts batches (micro_batch_size)")
    if precision.precision_opt_level is not None:
        cstorch.backends.csx.precision.optimization_level = precision.precision_opt_level
    return notes


def set_flags(init: Init) -> None:
    """Set the `csx.*` flags of the config's callbacks.

    Raises:
        UserError: cerebras.pytorch has no such flag.
    """
    for callback in init.callbacks:
        for key, value in (getattr(callback.value, "model_extra", None) or {}).items():
            *path, last = key.split(".")
            at = cstorch.backends
            for part in path:
                at = getattr(at, part, None)
            if not hasattr(at, last):
                raise UserError(f"trainer.init.callbacks: cerebras.pytorch has no flag {key!r}")
            setattr(at, last, value)


def cut_batches(micro_batch_size: int | str | None) -> None:
    """Set into what the compiler cuts a system's batch; by default it chooses."""
    cstorch.backends.csx.performance.micro_batch_size = micro_batch_size or "auto"
