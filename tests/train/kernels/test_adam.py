import pytest
import torch

from saecache.train.backends.compiled.adam import AdamSettings, adam_step, gradient_norm
from saecache.train.backends.dispatch import only_torch


@pytest.fixture(params=["compiled", "torch"])
def implementation(request):
    if request.param == "torch":
        with only_torch():
            yield
    else:
        yield


def run(weights, gradients, settings, *, unit_rows=False):
    weights = weights.clone()
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        adam_step(weights, gradient, mean, square, step, settings, unit_rows=unit_rows)
    return weights, mean, square


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(90, 20), (20,), (3, 1)])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_is_torch_adam(normal, shape, decoupled, weight_decay):
    weights, gradients = normal(*shape), [normal(*shape) for _ in range(5)]
    settings = AdamSettings(
        learning_rate=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay, decoupled=decoupled
    )
    expected = weights.clone().double().requires_grad_()
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind([expected], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    for gradient in gradients:
        expected.grad = gradient.double()
        optimizer.step()
    updated, mean, square = run(weights, gradients, settings)
    state = optimizer.state[expected]
    torch.testing.assert_close(updated.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.double(), state["exp_avg"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(square.double(), state["exp_avg_sq"], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("implementation")
def test_unit_rows_is_tangential_gradient_then_adam_then_normalization(normal):
    weights = torch.nn.functional.normalize(normal(90, 20))
    gradients = [normal(90, 20) for _ in range(4)]
    settings = AdamSettings(learning_rate=0.05, betas=(0.9, 0.999), eps=1e-8, gradient_scale=0.3)
    expected = weights.clone().double().requires_grad_()
    optimizer = torch.optim.Adam([expected], lr=0.05)
    for gradient in gradients:
        with torch.no_grad():
            g = gradient.double()
            expected.grad = 0.3 * (g - (g * expected).sum(1, keepdim=True) * expected)
            optimizer.step()
            expected /= expected.norm(dim=1, keepdim=True)
    updated, _, _ = run(weights, gradients, settings, unit_rows=True)
    torch.testing.assert_close(updated.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(updated.norm(dim=1), torch.ones(90))


@pytest.mark.usefixtures("implementation")
def test_a_row_of_zeros_stays_finite():
    weights, gradient = torch.zeros(3, 4), torch.zeros(3, 4)
    settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.999), eps=1e-8)
    assert torch.equal(run(weights, [gradient], settings, unit_rows=True)[0], weights)


@pytest.mark.usefixtures("implementation")
def test_gradient_norm(normal):
    gradient, weights = normal(90, 20), normal(90, 20)
    along = (gradient * weights).sum(1, keepdim=True) / weights.square().sum(1, keepdim=True)
    tangential = gradient.double() - along.double() * weights
    torch.testing.assert_close(gradient_norm(gradient), gradient.double().norm())
    torch.testing.assert_close(gradient_norm(gradient[0]), gradient[0].double().norm())
    torch.testing.assert_close(
        gradient_norm(gradient, unit_rows_of=weights), tangential.norm(), rtol=1e-6, atol=0
    )


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradient_norm_shows_what_is_not_finite(normal, bad):
    gradient = normal(90, 20)
    gradient[80, 19] = bad
    assert not gradient_norm(gradient).isfinite()
    assert not gradient_norm(gradient, unit_rows_of=normal(90, 20)).isfinite()


def test_same_bits_on_any_number_of_threads(normal, threads):
    weights, gradient = normal(300, 20), normal(300, 20)
    settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.999), eps=1e-8)
    seen = []
    for num_threads in (1, 3):
        threads(num_threads)
        seen.append((*run(weights, [gradient], settings, unit_rows=True), gradient_norm(gradient)))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
