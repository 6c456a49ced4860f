"""`sparsify` on a GPU: the CPU's masks, exact zeros, and steps that a GradScaler skips."""

import copy

import pytest
import torch
from torch import nn

from modelzoo.library.sparsify import sparsify
from tests.gpu.device import CPU, DEVICE

pytestmark = pytest.mark.gpu

GROUPS = {
    "set": {"algorithm": "set", "sparsity": 0.75, "update": {"freq": 2}},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3}},
    "packed": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3}, "block": [32, 32], "storage": "packed"},
}
OPTIMIZERS = {
    "foreach": lambda ps: torch.optim.AdamW(ps, 1e-2, eps=1e-3),
    "fused": lambda ps: torch.optim.AdamW(ps, 1e-2, eps=1e-3, fused=True),
    "capturable": lambda ps: torch.optim.Adam(ps := list(ps), 1e-2, eps=1e-3, capturable=ps[0].is_cuda),
    "momentum": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
}


def made(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)).to(device)


def backward(module: nn.Module, number: int, scale: float = 1.0) -> None:
    x, y = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(number)).to(next(module.parameters()).device)
    (((module(x) - y) ** 2).mean() * scale).backward()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("group", GROUPS)
def test_masks_are_the_cpus_and_what_they_mask_is_zero(group, optimizer):
    found = []
    for device in (CPU, DEVICE):
        module = made(device)
        steps = OPTIMIZERS[optimizer](module.parameters())
        sparsity = sparsify(module, steps, GROUPS[group])
        for number in range(5):  # one update of rigl's, two of set's
            steps.zero_grad()
            backward(module, number)
            steps.step()
            sparsity.step()
            if group != "packed":
                for name, mask in sparsity.masks.items():
                    p = module.get_parameter(name)
                    state = [x for x in steps.state[p].values() if isinstance(x, torch.Tensor) and x.shape == p.shape]
                    assert not any(x[~mask].any() for x in (p, p.grad, *state))
        found.append((sparsity.masks, sparsity.whole_state_dict()))
    (masks, weights), (there, others) = found
    for name, mask in masks.items():
        assert (
            mask != there[name].cpu()
        ).float().mean() < 0.002  # a gradient's last bit may decide between two weights
    if all(torch.equal(mask, there[name].cpu()) for name, mask in masks.items()):
        for name, x in weights.items():
            torch.testing.assert_close(others[name].cpu(), x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_changes_nothing(fused):
    module = made(DEVICE)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2, fused=fused)
    sparsity = sparsify(module, optimizer, {**GROUPS["rigl"], "update": {"freq": 1}})
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**4)
    for number in range(4):
        before = copy.deepcopy(module.state_dict()), sparsity.masks
        optimizer.zero_grad()
        backward(module, number, scaler.scale(torch.ones((), device=DEVICE)).item())
        if number in (0, 2):
            next(module.parameters()).grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        moved = sparsity.step()
        same = all(torch.equal(x, before[0][k]) for k, x in module.state_dict().items())
        assert same == (number in (0, 2)) and (moved == 0) == same
    assert sparsity.steps == 2
