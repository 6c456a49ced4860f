"""A run's copy on the wafer: model, optimizer, schedules and masks of cerebras.pytorch, and the step that is traced."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.backends.csx import parts
from modelzoo.backends.csx.library import cstorch
from modelzoo.config.required import require_optimizer
from modelzoo.config.trainer import Init
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel, loss_denominator
from modelzoo.models.shapes import list_with_adapters
from modelzoo.names import name_mask
from modelzoo.train_state import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # optimizer state that has one name on both sides


class WaferCopy:
    """A run's copy on the wafer; `ship` completes it.

    Args:
        init: the config's `trainer.init`.
        backend: cerebras.pytorch's.
        model: the host's model; None makes one without any values, to be traced alone.

    Attributes:
        body: takes a batch through one training step, as it was traced; `values` are its loss, gradient norm before
            clipping and loss scale.
        fetched: the state as it came back at the last checkpoint step; None before one.
    """

    def __init__(self, init: Init, backend: Any, model: GPTModel | None):
        self.init, self.backend, self.host = init, backend, model
        self.fetched: dict[str, Any] | None = None
        if model is None:
            with backend.device:
                self.model = adapt(GPTModel(init.model), init)
        else:
            self.model = copy.deepcopy(model)  # the host's takes the state back at checkpoints

    def ship(self, masks: Mapping[str, Tensor], moments: Mapping, steps: int, scale: float) -> None:
        """Put the copy on the wafer.

        Args:
            masks: by `<parameter>_mask`.
            moments: the host optimizer's state: by parameter, then by name.
            steps: optimizer steps taken.
            scale: the loss scale.
        """
        init, shapes = self.init, list_with_adapters(self.init)
        names = dict(self.model.named_parameters())
        self.compiled = cstorch.compile(self.model, self.backend)
        self.names = {name: self.model.get_parameter(name) for name in names}  # moving them may have replaced them
        self.optimizer = parts.make_optimizer(init, self.model, {n: x.kind for n, x in shapes.items()})
        self.schedulers = parts.make_schedulers(init, self.optimizer)
        self.algorithms = parts.sparsify(init, self.model, self.optimizer, shapes, masks)
        half = init.precision.fp16_type
        self.scaler = parts.make_grad_scaler(init, scale) if self.backend.is_csx and half != "bfloat16" else None
        if self.host is not None:
            self._resume(dict(self.host.named_parameters()), moments, steps)
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

    @torch.no_grad()
    def put_into(self, run: TrainState, start: int) -> bool:
        """Put the wafer's state into `run`, shipped at step `start`; False if it did not come back at this step."""
        found = self.fetched
        if found is None or start + found["step"] != run.step:
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
