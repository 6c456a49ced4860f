"""Training on CS-2 systems: a copy of the run on the wafer.

A run is built on this machine as for a CPU: same weights, masks, optimizer state and checkpoints. `ship` copies it
to the wafer, where the training step is traced once; `train_step` reads its values, and at checkpoint steps the state
is copied back into the run. So checkpoints have one format, and a run may move between CPU, GPU and CS-2.

cerebras.pytorch's own optimizer, learning-rate schedules and sparsity run on the wafer, set up from the same config
(csx_parts.py). Its "CPU" backend runs the same code here; tests hold it against ours.
"""

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.backends import arithmetic
from modelzoo.backends import csx_lowering as lowering
from modelzoo.backends import csx_parts as parts
from modelzoo.backends import csx_settings as settings
from modelzoo.backends.abilities import ABILITIES
from modelzoo.backends.csx import cstorch, log_to_stderr
from modelzoo.backends.csx_input import input_batches
from modelzoo.backends.csx_refusal import explain_refusal
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_optimizer
from modelzoo.config.trainer import Init
from modelzoo.data import feed
from modelzoo.data.hdf5 import Shards
from modelzoo.distributed import ALONE
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel, loss_denominator
from modelzoo.models.shapes import list_with_adapters
from modelzoo.names import name_mask
from modelzoo.train_state import Step, TrainState

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # optimizer state that has one name on both sides


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

    def __init__(self, init: Init, folder: str, only: str | None = None, kind: str = "CSX"):
        self.init, self.config, self.only = init, init.backend, only
        self.notes: list[str] = []
        self.device, self.fetched, self.executor, self.model = torch.device("cpu"), None, None, None
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

    # What runs on the wafer

    def ship(self, model: GPTModel | None, masks: Mapping[str, Tensor], moments: Mapping, steps: int, scale: float):
        """Make the wafer's copy of a run.

        Args:
            model: the host's model; None (with `only`) traces without any values.
            masks: by `<parameter>_mask`.
            moments: the host optimizer's state: by parameter, then by name.
            steps: optimizer steps taken.
            scale: the loss scale.
        """
        init, shapes = self.init, list_with_adapters(self.init)
        if model is None:
            with self.backend.device:
                self.model = adapt(GPTModel(init.model), init)
        else:
            self.model = copy.deepcopy(model)  # the host's copy takes the state back at checkpoints
        names = dict(self.model.named_parameters())
        self.compiled = cstorch.compile(self.model, self.backend)
        self.names = {name: self.model.get_parameter(name) for name in names}  # moving them may have replaced them
        self.optimizer = parts.make_optimizer(init, self.model, {n: x.kind for n, x in shapes.items()})
        self.schedulers = parts.make_schedulers(init, self.optimizer)
        self.algorithms = parts.sparsify(init, self.model, self.optimizer, shapes, masks)
        half = self.init.precision.fp16_type
        self.scaler = parts.make_grad_scaler(init, scale) if self.on_wafer and half != "bfloat16" else None
        if model is not None:
            self._resume(dict(model.named_parameters()), moments, steps)
        self.body = cstorch.trace(self._body)

    @torch.no_grad()
    def _resume(self, host: Mapping[str, Tensor], moments: Mapping, steps: int) -> None:
        with self.backend.device:
            for name, p in self.names.items():
                state, saved = self.optimizer.state[p], moments.get(host[name], {})
                for key in MOMENTS:
                    if key in state and isinstance(saved.get(key), Tensor):
                        state[key] = saved[key].detach().clone().to(self.backend.torch_device)
                for key, beta in zip(("beta1_power", "beta2_power"), getattr(self.optimizer, "betas", ())):
                    if key in state:  # beta ** t as step t uses it
                        state[key] = torch.tensor(beta ** (steps + 1)).to(self.backend.torch_device)
        if steps:
            for scheduler in self.schedulers:
                parts.advance_scheduler(scheduler, steps)
            for algorithm, group in self.algorithms:
                parts.advance_sparsity(algorithm, group, steps)

    def _body(self, batch: Mapping[str, Tensor]) -> None:
        """One training step, as traced: no branch on a value, no value read."""
        p = self.init.precision
        loss = self.compiled(batch, loss_denominator(self.init.model, batch["attention_mask"]))
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        weights = list(self.names.values())
        norm = torch.nn.utils.clip_grad_norm_(weights, p.max_gradient_norm or float("inf"))
        if p.max_gradient_value is not None:
            torch.nn.utils.clip_grad_value_(weights, p.max_gradient_value)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        for scheduler in self.schedulers:
            scheduler.step()
        scale = self.scaler.get_scale() if self.scaler else 1.0
        cstorch.step_closure(self._read)(loss, norm, scale)
        cstorch.checkpoint_closure(self._fetch_state)()

    def _read(self, loss, norm, scale) -> None:
        self.values = float(loss), float(norm), float(scale)

    def _fetch_state(self) -> None:
        """At a checkpoint step: all state, to the host."""
        get = self.backend.to_cpu
        self.fetched = {
            "step": cstorch.utils.data.data_executor.current_executor().user_iteration,
            "weights": {n: get(p.detach()).clone() for n, p in self.names.items()},
            "masks": {
                name: get(sparse.mask).clone() for a, _ in self.algorithms for name, sparse in a.sparse_params.items()
            },
            "moments": {
                n: {k: get(v).clone() for k, v in self.optimizer.state[p].items() if k in MOMENTS}
                for n, p in self.names.items()
            },
        }

    # What the loop calls

    def batches(self, run: TrainState, shards: Shards, stop: int) -> Iterator[dict[str, Tensor]]:
        """Ship `run` and go through its steps: the executor's batches, one a step."""
        start = run.step
        self.ship(run.model, run.sparsity.state_dict(), run.optimizer.state, run.optimizer_step, run.loss_scale.scale)
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
        self.body(batch)
        self.batch = self._next()
        return self.values

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
        found = self.fetched
        if self.executor is None:  # not shipped yet
            return True
        if found is None or self.start + found["step"] != run.step:
            return False
        for name, p in run.model.named_parameters():
            p.copy_(found["weights"][name])
            for key, value in found["moments"][name].items():
                run.optimizer.state[p][key].copy_(value)
            if "step" in run.optimizer.state[p] and require_optimizer(self.init).value.correct_bias:
                run.optimizer.state[p]["step"].fill_(run.optimizer_step)
        run.sparsity.load_state_dict({name_mask(name): mask for name, mask in found["masks"].items()})
        run.sparsity.explored.forget()  # it changes masks where nobody looks
        return True

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
        try:
            settings.cut_batches(micro_batch_size)
            self.ship(None, {}, {}, 0, 0.0)
            loader = cstorch.utils.data.DataLoader(_once, batch)
            executor = cstorch.utils.data.DataExecutor(loader, num_steps=1)
            for traced in executor:
                self.body(traced)
        except UserError:
            raise
        except Exception as e:
            if (refused := explain_refusal(e, self.config.mgmt_address)) is not None:
                raise refused from e
            if isinstance(e, RuntimeError | TypeError | ValueError | NotImplementedError):
                raise lowering.explain_failure(e, self.model) from e
            raise
        lowering.check(str(executor.artifact_dir))
        return str(executor.artifact_dir)


def _once(batch):
    return [batch]
