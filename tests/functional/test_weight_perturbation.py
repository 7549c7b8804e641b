import math

import torch

from lightning_robust.functional.weight_perturbation import perturbed_weights


def test_closed_form():
    """A linear loss x . w: the step has the length gamma |w| and the direction of x."""
    torch.manual_seed(0)
    w, x = torch.randn(4, 6), torch.randn(4, 6)
    (moved,) = perturbed_weights([w], [x], 0.01)
    torch.testing.assert_close(moved, w + 0.01 * w.norm() * x / x.norm())
    # whatever the scale of the gradient
    torch.testing.assert_close(perturbed_weights([w], [1e-9 * x], 0.01)[0], moved)


def test_each_tensor_has_its_own_norm_and_type():
    weights = [torch.ones(2, 2), 100 * torch.ones(2, 2, dtype=torch.float64)]
    steps = [
        after - w for after, w in zip(perturbed_weights(weights, [torch.ones(2, 2)] * 2, 0.1), weights, strict=True)
    ]
    torch.testing.assert_close([step.norm().item() for step in steps], [0.2, 20.0])
    assert [step.dtype for step in steps] == [torch.float32, torch.float64]


def test_without_a_gradient_weights_stay_to_the_bit():
    w = torch.randn(3, 3)
    for gradient in (torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.full((3, 3), math.inf)):
        assert torch.equal(perturbed_weights([w], [gradient], 0.1)[0], w)
