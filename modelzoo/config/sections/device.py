"""Where a run computes, and in which arithmetic."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from modelzoo.config.sections.base import Bool, Many, PositiveFloat, PositiveInt, Section, Str, Workers, listed


class Backend(Section):
    """Where to run, and what the chosen device needs to know."""

    backend_type: Annotated[
        Literal["CSX", "GPU", "CPU", "auto"],
        BeforeValidator(lambda v: v.upper() if isinstance(v, str) and v.lower() != "auto" else v),
    ] = "auto"  # auto: CSX if its keys are given, else a GPU if there is one, else CPU
    # fuses what lies between the products; default: on a GPU, where it takes 10 s at the start and gains 7 %; on a CPU
    # it takes 25-90 s on two cores, so by choice
    torch_compile: Bool | None = None
    # one GPU: forward and backward are captured once and replayed, where launching them takes the host longer than the
    # GPU computes; what a step takes of memory is kept for the next one
    cuda_graphs: Bool = True
    num_threads: Many | None = None  # CPU threads; default is torch's own choice
    # each of several processes holds all weights and moments, or a share of them (FSDP2; its sums are fast)
    parallel: Literal["replicate", "shard"] = "replicate"
    # how gradients are summed: exact is to the bit the same for 1, 2, 4, ... processes; default: as the run did so far,
    # else exact for several CPU processes, fast for several GPUs
    reduction: Literal["exact", "fast"] | None = None
    slices: Literal[1, 2, 4, 8, 16, 32, 64] = 8  # of a batch, in exact sums: as many processes at most
    # GPU/CPU: what backward computes again instead of keeping: nothing, each layer, or each layer's attention. The bits
    # stay; it takes less memory and more time
    activation_checkpointing: Literal["none", "layer", "attention"] = "none"
    deterministic: Bool = False  # GPU: refuse kernels that are not reproducible
    # CSX only
    compile_dir: Str | None = None
    num_csx: Many = 1  # systems
    num_workers_per_csx: Workers | None = None  # input workers
    mgmt_address: Str | None = None  # host:port
    credentials_path: Str | None = None  # TLS certificate
    mount_dirs: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()  # folders that the cluster is to see
    python_paths: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()  # code that the cluster is to see
    job_labels: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()
    job_priority: Literal["p1", "p2", "p3"] | None = None
    job_time_sec: PositiveInt | None = None  # time limit, seconds
    disable_version_check: Bool = False
    cluster_config: dict[Str, Any] | None = None

    def candidates(self, target: str) -> tuple[str, ...]:
        """The kinds of device that the command line's `target` may select, in the order in which they are tried."""
        if target != "auto":
            return (target,)
        kinds = ("CSX", "GPU", "CPU")
        return kinds[1:] if self.backend_type == "auto" else kinds[kinds.index(self.backend_type) :]


class Precision(Section):
    """Mixed precision, loss scaling and gradient clipping (Model Zoo's MixedPrecision)."""

    enabled: Bool = True  # false computes in float32
    # used where the device multiplies it; elsewhere float32 (on a GPU float16)
    fp16_type: Literal["float16", "bfloat16", "cbfloat16"] = "bfloat16"
    emulate: Bool = False  # GPU/CPU: true insists on fp16_type where the device does not multiply it (slow)
    precision_opt_level: Literal[0, 1, 2] | None = None  # CSX only
    # acts in float16 only; dynamic where float16 replaces bfloat16
    loss_scaling_factor: PositiveFloat | Literal["dynamic"] | None = 1.0
    initial_loss_scale: PositiveFloat | None = None  # of dynamic scaling
    steps_per_increase: PositiveInt = 2000  # steps without overflow until the scale doubles
    min_loss_scale: PositiveFloat | None = None
    max_loss_scale: PositiveFloat | None = None
    max_gradient_norm: PositiveFloat | None = None  # clip the whole gradient's norm (over live weights)
    max_gradient_value: PositiveFloat | None = None  # clip each entry instead
    log_loss_scale: Bool | None = None

    @model_validator(mode="after")
    def _one_clip(self):
        if self.max_gradient_norm is not None and self.max_gradient_value is not None:
            raise ValueError("give max_gradient_norm or max_gradient_value, not both")
        return self
