"""Training on CS-2 systems: a copy of the run on the wafer.

A run is built on this machine as for a CPU: same weights, masks, optimizer state and checkpoints. It is copied to the
wafer (copy.py), where the training step is traced once; `train_step` reads its values, and at checkpoint steps the
state is copied back into the run. So checkpoints have one format, and a run may move between CPU, GPU and CS-2.

cerebras.pytorch's own optimizer, learning-rate schedules and sparsity run on the wafer, set up from the same config
(parts.py). Its "CPU" backend runs the same code here; tests hold it against ours.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.backends import arithmetic
from modelzoo.backends.abilities import ABILITIES
from modelzoo.backends.csx import lowering, settings
from modelzoo.backends.csx.copy import WaferCopy
from modelzoo.backends.csx.input import input_batches
from modelzoo.backends.csx.library import cstorch, log_to_stderr
from modelzoo.backends.csx.refusal import explain_refusal
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init
from modelzoo.data import feed
from modelzoo.data.hdf5 import Shards
from modelzoo.distributed import ALONE
from modelzoo.models.gpt import GPTModel
from modelzoo.train_state import Step, TrainState


class CSX:
    """Training on CS-2 systems.

    Args:
        init: the config's `trainer.init`; its backend section must be complete (site defaults included).
        folder: where cerebras.pytorch writes its artefacts.
        only: "validate" lowers the step without a cluster, "compile" has a cluster compile it; None trains.
        kind: cerebras.pytorch's backend. "CPU" runs the same code on this machine (for tests).
    """

    kind, device_class, abilities = "CSX", "CS-2", ABILITIES["CSX"]
    ranks = ALONE  # its own data parallelism (num_csx) is inside the cluster
    asynchronous = False  # the executor hands a step's values out with the next batch
    copy: WaferCopy  # of the run, since `batches`

    def __init__(self, init: Init, folder: str, only: str | None = None, kind: str = "CSX"):
        self.init, self.config, self.only = init, init.backend, only
        self.notes: list[str] = []
        self.device, self.executor = torch.device("cpu"), None
        log_to_stderr("error" if only == "validate" or kind == "CPU" else init.logging.log_level)
        options: dict[str, Any] = {}
        if kind != "CPU":
            options = {"compile_dir": self.config.compile_dir, "cluster_config": settings.make_cluster(self.config)}
        if only:
            options[f"{only}_only"] = True
        there = cstorch.current_backend(raise_exception=False, raise_warning=False)  # one to a process
        self.backend = there or cstorch.backend(kind, artifact_dir=folder, **options)
        self.on_wafer = self.backend.is_csx
        precision = init.precision
        self.dtype = torch.bfloat16 if precision.fp16_type == "bfloat16" else torch.float16
        simulated = arithmetic.Arithmetic("float32", "cerebras.pytorch's CPU backend computes in it")
        self.arithmetic = arithmetic.expect_arithmetic("CSX", precision) if self.on_wafer else simulated
        if self.on_wafer:
            self.notes += settings.set_precision(init)
            if only is None and any(g.algorithm != "static" for g in init.sparsity):
                self.notes.append(
                    "sparsity and churn are reported as of the last checkpoint; the wafer keeps its masks"
                )
        settings.set_flags(init)

    def describe(self) -> str:
        if not self.on_wafer:
            return "cerebras.pytorch's CPU backend"
        doing = {"validate": "lowering only", "compile": "compiling only", None: f"{self.config.num_csx} systems"}
        return f"CS-2 through cerebras.pytorch {cstorch.__version__} ({doing[self.only]}), {self.arithmetic.dtype}"

    def place(self, model: GPTModel, move: bool = True) -> GPTModel:
        """The host's copy stays where it is; `ship` makes the wafer's."""
        return model

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def put(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def memory(self) -> int | None:
        return None

    def holds_graphs(self) -> bool:
        return False

    def batches(self, run: TrainState, shards: Shards, stop: int) -> Iterator[dict[str, Tensor]]:
        """Ship `run` and go through its steps: the executor's batches, one a step."""
        start = run.step
        self.copy = WaferCopy(self.init, self.backend, run.model)
        self.copy.ship(run.sparsity.state_dict(), run.optimizer.state, run.optimizer_step, run.loss_scale.scale)
        run.sparsity.explored.forget()
        self.start = start
        settings.cut_batches(shards.config.micro_batch_size)
        loader = cstorch.utils.data.DataLoader(
            input_batches, shards.config, shards.vocab_size, shards.prompt_tokens, start, stop
        )
        every = self.init.checkpoint.steps or stop - start
        self.executor = cstorch.utils.data.DataExecutor(loader, num_steps=stop - start, checkpoint_steps=every)
        self.steps = iter(self.executor)
        try:
            self.batch = self._next()
            for _ in range(start, stop):
                yield self.batch
        finally:
            self.steps.close()  # an interrupted run gives the cluster its systems back

    def train_step(self, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step:
        """One step on the wafer: its body was traced once; what it computed arrives here. Its compiler cuts batches.

        The wafer's dynamic loss scale passes over a step that is not finite; without one, such a step was taken.
        """
        lr, tokens = run.lr(), batch["input_ids"].numel()
        context = batch["input_ids"].shape[1]
        run.count_flops(tokens, context)
        loss, norm, run.loss_scale.scale = self._step(batch)
        finite = math.isfinite(loss) and math.isfinite(norm)
        run.step += 1
        run.tokens += tokens if finite else 0
        run.skipped += not finite
        return Step(loss, norm, lr, tokens, 0, not finite)

    def queue_step(self, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step | None:
        return self.train_step(run, batch, micro_batches)

    def validation_batches(self, shards: Shards, eval_steps: int | None) -> Iterator[dict[str, Tensor]]:
        return feed.iterate_validation(shards, eval_steps)  # of the host's copy

    def _step(self, batch: Mapping[str, Tensor]) -> tuple[float, float, float]:
        """Loss, gradient norm before clipping and loss scale of one step.

        The executor hands values out when asked for its next batch, so it is asked here.
        """
        self.copy.body(batch)
        self.batch = self._next()
        return self.copy.values

    def _next(self) -> Any:  # cerebras.pytorch types no batch
        """The executor's next batch; None after the last."""
        try:
            return next(self.steps, None)
        except Exception as e:
            if (refused := explain_refusal(e, self.config.mgmt_address)) is not None:
                raise refused from e
            raise

    @torch.no_grad()
    def fetch(self, run: TrainState) -> bool:
        """Put the wafer's state into `run`; False if it did not come back at this step."""
        if self.executor is None:  # not shipped yet
            return True
        return self.copy.put_into(run, self.start)

    def lower(
        self,
        batch: dict[str, Tensor],
        micro_batch_size: int | str | None,
        names: Iterable[str],
        live: Mapping[str, int],
    ) -> str:
        """Trace one training step on `batch` and lower it; with `only="compile"` a cluster compiles it too.

        Raises:
            UserError: names the op, module and config key that do not go, or what the cluster refused.
        """
        begin = time.perf_counter()
        folder = self._lower(batch, micro_batch_size)
        found = lowering.describe_lowering(lowering.read(folder), folder, time.perf_counter() - begin, names, live)
        if self.only == "compile":
            where = self.config.mgmt_address or "its address"
            return f"{found}\ncompiled   by the cluster at {where}; -m train finds it there"
        placed = "lowered, not placed: whether it fits the wafer is for a cluster to say (--compile_only)"
        return f"{found}\n           {placed}"

    def _lower(self, batch: dict[str, Tensor], micro_batch_size: int | str | None) -> str:
        """The folder of torch.mlir and cirh.mlir of one traced step."""
        for stale in self.backend.artifact_dir.glob("executors/*/traceback_*.json"):
            stale.unlink()
        copied = None
        try:
            settings.cut_batches(micro_batch_size)
            copied = WaferCopy(self.init, self.backend, None)
            copied.ship({}, {}, 0, 0.0)
            loader = cstorch.utils.data.DataLoader(_once, batch)
            executor = cstorch.utils.data.DataExecutor(loader, num_steps=1)
            for traced in executor:
                copied.body(traced)
        except UserError:
            raise
        except Exception as e:
            if (refused := explain_refusal(e, self.config.mgmt_address)) is not None:
                raise refused from e
            if isinstance(e, RuntimeError | TypeError | ValueError | NotImplementedError):
                raise lowering.explain_failure(e, None if copied is None else copied.model) from e
            raise
        lowering.check(str(executor.artifact_dir))
        return str(executor.artifact_dir)


def _once(batch):
    return [batch]
