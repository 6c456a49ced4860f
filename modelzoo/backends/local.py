"""CPU and one GPU: plain torch."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor

from modelzoo.backends import arithmetic, step
from modelzoo.backends.abilities import ABILITIES
from modelzoo.backends.base import DENOMINATOR
from modelzoo.backends.graphs import Graphs
from modelzoo.config.errors import UserError
from modelzoo.config.sections.device import Backend as Config
from modelzoo.config.sections.device import Precision
from modelzoo.data import feed
from modelzoo.data.hdf5 import Shards
from modelzoo.distributed import ALONE, Ranks
from modelzoo.host import keep_freed_memory, peak_memory
from modelzoo.kernels import processor
from modelzoo.models.decoder import DecoderLayer
from modelzoo.models.gpt import GPTModel
from modelzoo.train_state import Step, TrainState


class Local:
    """Training on torch's own device, `cpu` or `cuda`."""

    def __init__(self, device: torch.device, config: Config, precision: Precision, ranks: Ranks = ALONE):
        self.device, self.config, self.ranks = device, config, ranks
        self.kind = "GPU" if device.type == "cuda" else "CPU"
        self.abilities, self.asynchronous = ABILITIES[self.kind], self.kind == "GPU"
        if self.kind == "CPU":
            keep_freed_memory()
        if config.num_threads and self.kind == "CPU":
            torch.set_num_threads(config.num_threads)
        if self.kind == "GPU":
            if device.index is not None:  # without a number it is the current one
                torch.cuda.set_device(device)
            torch.backends.cuda.matmul.allow_tf32 = precision.enabled
            self.device_class = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            name = f"this GPU ({torch.cuda.get_device_name(device)})"
            self.arithmetic = arithmetic.decide_arithmetic("GPU", precision, bf16, name)
        else:
            self.device_class, self.arithmetic = processor.processor_class(), arithmetic.decide_on_cpu(precision)
        self.dtype: torch.dtype = getattr(torch, self.arithmetic.dtype)
        self.notes = [self.arithmetic.note] if self.arithmetic.note else []
        self.graphs: Graphs | None = None
        self.compiles, why = self._decide_compile()
        if why:
            self.notes.append(why)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def describe(self) -> str:
        many = f"{self.ranks.size} x " if self.ranks.size > 1 else ""
        if self.kind == "GPU":
            return f"{many}GPU ({torch.cuda.get_device_name(self.device)}), {self.arithmetic.dtype}"
        return f"{many}CPU ({torch.get_num_threads()} threads, {processor.title()}), {self.arithmetic.dtype}"

    def place(self, model: GPTModel, move: bool = True) -> GPTModel:
        model = model.to(self.device) if move else model
        if self.compiles:
            # Weights that are stored packed differ in size, and change it: the compiler would soon give up on them.
            torch._dynamo.config.force_parameter_static_shapes = False
        for layer in [m for m in model.modules() if isinstance(m, DecoderLayer)]:
            layer.recompute = self.config.activation_checkpointing
            if self.compiles:
                layer.compile()  # layer by layer: they share one compilation, and parameter names stay
        return model

    def _decide_compile(self) -> tuple[bool, str]:
        """Whether layers are compiled, and a note where they would be but cannot be."""
        if self.config.torch_compile is not None or self.kind == "CPU":
            return bool(self.config.torch_compile), ""
        lacking = [] if find_spec("triton") else ["Triton"]
        lacking += [] if any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))) else ["a C compiler"]
        return not lacking, f"torch_compile is off: it needs {' and '.join(lacking)}" if lacking else ""

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def put(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.kind == "GPU":  # a copy from memory that is not pinned waits for all work before it
            batch = {name: x.contiguous().pin_memory() if x.is_cpu else x for name, x in batch.items()}
        return {name: x.to(self.device, non_blocking=True) for name, x in batch.items()}

    def compute_gradients(self, run: TrainState, micro: dict[str, Tensor]) -> Tensor:
        batch = self.put(micro)
        if not self._takes_graphs(run):
            return self._compute(run, batch)
        if self.graphs is None or self.graphs.run is not run:
            self.graphs = Graphs(run, self._compute)
        return self.graphs.compute_gradients(batch)

    def _compute(self, run: TrainState, batch: dict[str, Tensor]) -> Tensor:
        with self.autocast():
            loss = run.model({n: x for n, x in batch.items() if n != DENOMINATOR}, batch[DENOMINATOR])
        (loss * run.loss_scale.scale).backward()
        return loss.detach()

    def _takes_graphs(self, run: TrainState) -> bool:
        """Whether micro-batches are captured: on one GPU, if nothing forbids."""
        alone = self.ranks.size == 1 and run.reduction.slices is None and self.config.activation_checkpointing == "none"
        return self.kind == "GPU" and alone and not run.loss_scale.dynamic and self.config.cuda_graphs

    def train_step(self, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step:
        return step.train_step(self, run, batch, micro_batches)

    def queue_step(self, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step | None:
        return step.queue_step(self, run, batch, micro_batches)

    def lower(
        self,
        batch: dict[str, Tensor],
        micro_batch_size: int | str | None,
        names: Iterable[str],
        live: Mapping[str, int],
    ) -> str:
        raise UserError(f"{self.kind}: runs the training step as it is; only a CS-2's is lowered (CSX --validate_only)")

    def validation_batches(self, shards: Shards, eval_steps: int | None) -> Iterator[dict[str, Tensor]]:
        batches = feed.iterate_validation(shards, eval_steps, self.ranks.rank, self.ranks.size)
        return map(self.put, batches)

    def batches(self, run: TrainState, shards: Shards, stop: int) -> Iterator[dict[str, Tensor]]:
        return feed.iterate_batches(shards, run.step, stop, pin_memory=self.kind == "GPU")

    def fetch(self, run: TrainState) -> bool:
        return True  # it never left

    def holds_graphs(self) -> bool:
        return self.graphs is not None and bool(self.graphs.captured)

    def memory(self) -> int | None:
        if self.kind == "GPU":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_memory()
