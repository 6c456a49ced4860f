"""The one place that turns a target into a device: what was asked for, or the next best with the reason given.

Imports torch where a device is made and not before, so that the command line may ask here first.
"""

import sys
from typing import TYPE_CHECKING, NamedTuple

from modelzoo.backends.abilities import ABILITIES
from modelzoo.backends.csx import preflight
from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import CSTORCH
from modelzoo.config.sections.sparsity_schedules import Sigmoid
from modelzoo.config.trainer import Config, Init

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from modelzoo.backends.base import Backend
    from modelzoo.distributed import Ranks

WAYS_OUT = {
    "CSX": preflight.WAYS_OUT,
    "GPU": "run with `auto` or `CPU`, or install a CUDA build of torch on a machine with an NVIDIA GPU",
}


class Choice(NamedTuple):
    backend: "Backend"
    asked: str
    fallback: str | None  # why it is another device than the one asked for

    def describe(self) -> str:
        """Lines for a start: the device and its arithmetic, why it is no other, what is done otherwise than asked."""
        first = f"device     {self.backend.describe()}" + (f"  [{self.fallback}]" if self.fallback else "")
        return "\n".join([first, *(f"           {note}" for note in self.backend.notes)])


def evaluates(target: str) -> bool:
    """Whether the command line's `target` runs models outside of training; `auto` finds a device that does."""
    return target == "auto" or ABILITIES[target].evaluates


def lowers(target: str) -> bool:
    """Whether `--validate_only` and `--compile_only` mean the target's own lowering, and no step in torch."""
    return target != "auto" and ABILITIES[target].lowers


def require_target(target: str, init: Init, mode: str, compile_only: bool, validate_only: bool) -> None:
    """Stop a command whose explicit target is not there or does not do it, before torch is imported.

    Raises:
        UserError: the reason, and the ways out.
    """
    if evaluates(target):
        return
    if not validate_only:
        preflight.require_cluster(preflight.add_site_defaults(init.backend))
    if not (compile_only or validate_only) and mode != "train":
        raise UserError(f"{target} trains; run -m {mode} of its checkpoints with CPU or GPU")


def explain_missing(kind: str, init: Init) -> str | None:
    """Why `kind` cannot be used here, or None."""
    if kind == "CSX":
        return explain_structured(init) or preflight.explain_missing_cluster(preflight.add_site_defaults(init.backend))
    if kind == "GPU":
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA device" if torch.version.cuda else "this torch is a CPU build"
    return None


def explain_structured(init: Init) -> str | None:
    """Why the CS-2 cannot train with the config's masks, or None.

    It takes each weight for itself, by cerebras.pytorch's own algorithms and optimizers.
    """
    for g in init.sparsity:
        if g.pattern:
            return f"its masks are unstructured, not trainer.init.sparsity's {g.pattern}"
        if g.algorithm not in CSTORCH:
            return f"cerebras.pytorch has no trainer.init.sparsity.algorithm: {g.algorithm}"
        if g.regrow_warmup:
            return "cerebras.pytorch's optimizers have no trainer.init.sparsity.regrow_warmup"
        if isinstance(g.sparsity, Sigmoid) or isinstance(g.drop_fraction, Sigmoid):
            return "cerebras.pytorch has no trainer.init.sparsity schedule of type sigmoid"
    return None


def finds_gpu(target: str, init: Init) -> bool:
    """Whether `target` leads to a GPU here."""
    kinds = init.backend.candidates(target)
    return next((k for k in kinds if explain_missing(k, init) is None), "CPU") == "GPU"


def joining_ranks(target: str, init: Init) -> "AbstractContextManager[Ranks]":
    """Join the other processes of this launch (`joining.joining`) on the device that `target` leads to."""
    from modelzoo.joining import joining

    return joining("GPU" if finds_gpu(target, init) else "CPU")


def count_gpus(target: str, init: Init) -> int:
    """The visible GPUs, if `target` leads to one of them; else 0."""
    if not finds_gpu(target, init):
        return 0
    import torch

    return torch.cuda.device_count()


def select_device(
    target: str, init: Init, folder: str = ".", trains_alone: bool = False, ranks: "Ranks | None" = None
) -> Choice:
    """The backend for `target`: CSX, GPU and CPU are taken at their word; auto tries the config's and falls back.

    Args:
        folder: the run's; cerebras.pytorch writes its artefacts under it.
        trains_alone: take a device that trains and does nothing else, too.

    Raises:
        UserError: an explicit target that is not there or does less than is asked of it, with the ways out.
    """
    if target == "CSX":
        _require_unstructured(init)
    if target != "auto":
        if why := explain_missing(target, init):
            raise UserError(f"{target}: {why}; {WAYS_OUT[target]}")
        if why := _does_less(target, trains_alone):
            raise UserError(f"{target}: {why}; use CPU or GPU")
        return Choice(_make(target, init, folder, ranks), target, None)
    asked, reasons = init.backend.backend_type, []
    for kind in init.backend.candidates(target):
        why = explain_missing(kind, init) or _does_less(kind, trains_alone)
        if why is None:
            fallback = f"{', '.join(reasons)}; running on {kind}" if reasons and asked != "auto" else None
            return Choice(_make(kind, init, folder, ranks), asked, fallback)
        reasons.append(f"{kind}: {why}")
    raise AssertionError("the CPU is always there")


def select_training_device(
    target: str, config: Config, folder: str, evaluate: bool, ranks: "Ranks | None" = None
) -> Choice:
    """`select` for a run. A cluster's job is checked whole, and what it will send is printed, before it sends anything.

    Args:
        evaluate: whether the run is validated as it goes.

    Raises:
        UserError: as in `select`, or everything that is wrong with the job.
    """
    init = config.trainer.init
    backend = preflight.add_site_defaults(init.backend)
    asked = target if target != "auto" else init.backend.backend_type
    if asked == "CSX" and preflight.explain_missing_cluster(backend) is None:
        if evaluate:
            raise UserError("CSX trains; use -m train, and -m eval of its checkpoints with CPU or GPU")
        _print_job(config, compile_only=False)
    return select_device(target, init, folder, trains_alone=True, ranks=ranks)


def select_to_lower(config: Config, folder: str, compile_only: bool) -> "Backend":
    """The device that lowers a step (`lowers`); with `compile_only` its cluster must answer, and its job is checked.

    Raises:
        UserError: the client library or the cluster is not there, or what is wrong with the job.
    """
    if compile_only:
        preflight.require_cluster(preflight.add_site_defaults(config.trainer.init.backend))
        _print_job(config, compile_only=True)
    return csx(config.trainer.init, folder, "compile" if compile_only else "validate")


def _print_job(config: Config, compile_only: bool) -> None:
    """Check a cluster's job and print what was checked and what it sends."""
    backend = preflight.add_site_defaults(config.trainer.init.backend)
    print("preflight  " + "; ".join(preflight.check_job(config, backend, compile_only)), file=sys.stderr)
    print(preflight.describe_transfer(config, backend, compile_only), file=sys.stderr, flush=True)


def _does_less(kind: str, trains_alone: bool) -> str | None:
    return None if trains_alone or ABILITIES[kind].evaluates else "it trains (-m train) and does nothing else"


def _require_unstructured(init: Init) -> None:
    if why := explain_structured(init):
        raise UserError(f"CSX: {why}; change it, or train with GPU or CPU")


def _make(kind: str, init: Init, folder: str, ranks: "Ranks | None") -> "Backend":
    if kind == "CSX":
        return csx(init, folder)
    import torch

    from modelzoo.backends.local import Local
    from modelzoo.distributed import ALONE

    ranks = ranks or ALONE
    if kind == "GPU":
        one = ranks.size == 1 or torch.cuda.device_count() == 1  # Slurm may give each process a GPU of its own to see
        device = torch.device("cuda") if one else torch.device("cuda", ranks.local)
    else:
        device = torch.device("cpu")
    return Local(device, init.backend, init.precision, ranks)


def csx(init: Init, folder: str, only: str | None = None) -> "Backend":
    """The CS-2 backend; `only` is "validate" (needs no cluster) or "compile".

    Raises:
        UserError: the client library is not installed here.
    """
    _require_unstructured(init)
    if why := preflight.explain_missing_library():
        raise UserError(f"CSX: {why}")
    from modelzoo.backends.csx.backend import CSX  # takes seconds to import, and is installed in its own environment

    backend = preflight.add_site_defaults(init.backend)
    return CSX(init.model_copy(update={"backend": backend}), folder, only)
