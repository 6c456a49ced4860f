"""AgedAdam: torch's AdamW where nothing is regrown, and a float64 Adam of its own for each weight that is."""

import pytest
import torch

from modelzoo.optim.adam import AgedAdam

EPS = 1e-8


def make(values, betas=(0.9, 0.95), decay=0.1, decoupled=True, correct_bias=True, aged=True, warmup=0):
    p = torch.nn.Parameter(values.clone())
    group = {"params": [p], "weight_decay": decay}
    optimizer = AgedAdam([group], betas, EPS, decoupled, correct_bias, [p] if aged else [], {p: warmup})
    return p, optimizer


def gradient(step, n=12, scale=1.0):
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(100 + step))


def take(p, optimizer, grad, lr):
    optimizer.param_groups[0]["lr"] = lr
    p.grad = grad.clone()
    optimizer.step()


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.9)])
def test_equals_torch_bit_for_bit_where_nothing_is_regrown(betas, decoupled):
    start = torch.randn(12, generator=torch.Generator().manual_seed(0))
    p, optimizer = make(start, betas, decoupled=decoupled)
    q = torch.nn.Parameter(start.clone())
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    reference = kind([q], lr=1.0, betas=betas, eps=EPS, weight_decay=0.1, fused=True)
    for step in range(40):
        lr = 0.01 * (1 + step % 3)
        take(p, optimizer, gradient(step), lr)
        take(q, reference, gradient(step), lr)
        assert torch.equal(p, q)
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[p][key], reference.state[q][key])


class Weight:
    """Adam in float64 for a single weight, from the paper, counting from the weight's own birth."""

    def __init__(self, value, betas, decay, decoupled, warmup=1):
        self.value, self.betas, self.decay, self.decoupled = value, betas, decay, decoupled
        self.warmup = warmup  # SMET (arXiv 2606.00888): the first moment times min(age / warmup, 1)
        self.m = self.v = 0.0
        self.age = 0

    def step(self, grad, lr):
        self.age += 1
        b1, b2 = self.betas
        if self.decoupled:
            self.value *= 1 - lr * self.decay
        else:
            grad += self.decay * self.value
        self.m = b1 * self.m + (1 - b1) * grad
        self.v = b2 * self.v + (1 - b2) * grad * grad
        lr *= min(self.age / self.warmup, 1.0)
        self.value -= lr * (self.m / (1 - b1**self.age)) / ((self.v / (1 - b2**self.age)) ** 0.5 + EPS)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)])
def test_each_regrown_weight_has_its_own_adam(betas, decoupled):
    """Three weights are regrown every seventh step, some of them again later; 460 steps pass beta 0.95's horizon."""
    steps, lr = (460, 0.01) if betas[1] == 0.95 else (120, 0.01)
    start = torch.randn(12, generator=torch.Generator().manual_seed(0))
    p, optimizer = make(start, betas, decoupled=decoupled)
    reference = [Weight(float(x), betas, 0.1, decoupled) for x in start]
    state = optimizer.state[p]
    for step in range(steps):
        grad = gradient(step)
        take(p, optimizer, grad, lr)
        for w, g in zip(reference, grad.tolist(), strict=True):
            w.step(g, lr)
        torch.testing.assert_close(
            p.double(), torch.tensor([w.value for w in reference]).double(), rtol=1e-4, atol=1e-5
        )
        if step % 7 == 3 and step < 100:
            again = [(step + j) % 12 for j in (0, 1, 5)]
            with torch.no_grad():
                for tensor in (p, state["exp_avg"], state["exp_avg_sq"]):
                    tensor[again] = 0.0
                state["born"][again] = int(state["step"])
            for i in again:
                reference[i] = Weight(0.0, betas, 0.1, decoupled)
    if betas[1] == 0.95:
        assert steps > optimizer.horizon + 100  # all grown up by now
        assert optimizer.ages.find(optimizer, p, state["born"], betas) is None


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("betas,warmup", [((0.9, 0.95), 10), ((0.5, 0.25), 40)])  # within the horizon, and beyond it
def test_regrown_weights_warm_up(betas, warmup, decoupled):
    """The whole step against float64; weights regrow, some while they warm up, and steps are passed over."""
    start = torch.randn(12, generator=torch.Generator().manual_seed(0))
    p, optimizer = make(start, betas, decoupled=decoupled, warmup=warmup)
    reference = [Weight(float(x), betas, 0.1, decoupled) for x in start]
    state, passed = optimizer.state[p], torch.ones(())
    assert (optimizer.horizon < warmup) == (warmup == 40)
    for step in range(100):
        if step % 10 == 7:  # as on a GPU whose step was not finite
            before, optimizer.found_inf = p.detach().clone(), passed
            take(p, optimizer, gradient(step), 0.01)
            optimizer.found_inf = None
            optimizer.recount()
            assert torch.equal(p, before)
            continue
        grad = gradient(step)
        take(p, optimizer, grad, 0.01)
        for w, g in zip(reference, grad.tolist(), strict=True):
            w.step(g, 0.01)
        expected = torch.tensor([w.value for w in reference]).double()
        torch.testing.assert_close(p.double(), expected, rtol=1e-4, atol=1e-5)
        if step % 13 == 5:
            again = [(step + j) % 12 for j in (0, 1, 5)]
            with torch.no_grad():
                for tensor in (p, state["exp_avg"], state["exp_avg_sq"]):
                    tensor[again] = 0.0
                state["born"][again] = int(state["step"])
            for i in again:
                reference[i] = Weight(0.0, betas, 0.1, decoupled, warmup)


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_the_first_update_of_a_regrown_weight_has_adams_size(beta2):
    """lr, whatever the gradient. With the global step it would be up to (1 - beta1) / sqrt(1 - beta2) times that."""
    p, optimizer = make(torch.zeros(12), (0.9, beta2), decay=0.0)
    for step in range(1000 if beta2 == 0.95 else 300):
        take(p, optimizer, gradient(step), 0.0)
    state = optimizer.state[p]
    with torch.no_grad():
        for tensor in (p, state["exp_avg"], state["exp_avg_sq"]):
            tensor[:6] = 0.0
        state["born"][:6] = int(state["step"])
    take(p, optimizer, gradient(0, scale=3.0), 0.01)
    torch.testing.assert_close(p[:6].detach().abs(), torch.full((6,), 0.01), rtol=1e-5, atol=0)
    # the same weights without ages
    q, plain = make(torch.zeros(12), (0.9, beta2), decay=0.0, aged=False)
    plain.state[q]["step"].fill_(int(state["step"]) - 1)
    take(q, plain, gradient(0, scale=3.0), 0.01)
    expected = 0.1 / (1 - beta2) ** 0.5 * (1 - beta2 ** int(state["step"])) ** 0.5
    torch.testing.assert_close(q[:6].detach().abs(), torch.full((6,), 0.01 * expected), rtol=1e-3, atol=0)


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.9), (0.99, 0.5)])
def test_beyond_the_horizon_age_does_not_matter(betas):
    _, optimizer = make(torch.zeros(2), betas)
    for beta in betas:
        assert torch.tensor(1 - beta**optimizer.horizon, dtype=torch.float32).item() == 1.0
        assert 1 - max(betas) ** (optimizer.horizon // 2) < 1.0


def test_without_bias_correction():
    """m and v are taken as they are, from the first step to the last, also for weights that are regrown."""
    p, optimizer = make(torch.zeros(12), decay=0.0, correct_bias=False)
    m = v = torch.zeros(12, dtype=torch.float64)
    value = torch.zeros(12, dtype=torch.float64)
    for step in range(30):
        grad = gradient(step)
        take(p, optimizer, grad, 0.01)
        m, v = 0.9 * m + 0.1 * grad.double(), 0.95 * v + 0.05 * grad.double() ** 2
        value = value - 0.01 * m / (v.sqrt() + EPS)
        torch.testing.assert_close(p.double(), value, rtol=1e-5, atol=1e-6)
    assert "born" not in optimizer.state[p]


def test_state_exists_before_the_first_step():
    """So a checkpoint at step 0 has the same entries as any other."""
    p, optimizer = make(torch.zeros(12))
    before = {k: (v.shape, v.dtype) for k, v in optimizer.state[p].items()}
    take(p, optimizer, gradient(0), 0.01)
    assert {k: (v.shape, v.dtype) for k, v in optimizer.state[p].items()} == before
    assert set(before) == {"step", "exp_avg", "exp_avg_sq", "born"}


def test_a_parameter_without_gradient_stays():
    p, optimizer = make(torch.ones(12))
    take(p, optimizer, gradient(0), 0.01)
    optimizer.state[p]["born"][:3] = 1
    before, p.grad = p.detach().clone(), None
    optimizer.step()
    assert torch.equal(p, before)
