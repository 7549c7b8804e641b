import pytest
import torch

from lightning_robust.functional.attacks import fgsm
from lightning_robust.functional.norm_ball import NormBall, as_radius


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.03, 8 / 255, 0.1, 0.3, 1e-5, 0.5, 0.0])
@pytest.mark.parametrize("form", [float, lambda value: torch.tensor([value] * 3, dtype=torch.float64)])
def test_a_radius_is_rounded_down(dtype, eps, form):
    """It is the largest number of the type that is not above what was asked (0.03 is 0.03003 in bf16 otherwise)."""
    radius = as_radius(form(eps), torch.zeros(3, 2, dtype=dtype), "eps")
    assert radius.dtype == dtype
    largest, smallest = radius.double().max().item(), radius.double().min().item()
    assert largest == smallest <= eps
    # the next number above it is larger than asked
    assert eps < largest * (1 + torch.finfo(dtype).eps) + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [0.03, 8 / 255, 0.07])
def test_nothing_moves_further_than_asked_in_half_precision(dtype, eps):
    x = torch.rand(64, 20).to(dtype)
    moved = fgsm(lambda z: z.sum(1), x, eps).double() - x.double()
    assert 0.5 * eps < moved.max() <= eps


def test_elements_have_no_radius_of_their_own_in_l2():
    with pytest.raises(ValueError, match=r"one radius for each sample with norm='l2'.* each of 3 elements"):
        NormBall(torch.zeros(2, 3), torch.ones(1, 3), "l2")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.2, [0.1, 0.2, 0.3, 0.4]])
def test_the_ball_of_some_samples_projects_as_that_of_all(norm, eps):
    center, mask = torch.rand(4, 2, 3), torch.rand(4, 2, 3) > 0.3
    radius = as_radius(eps if isinstance(eps, float) else torch.tensor(eps), center, "eps")
    ball, point = NormBall(center, radius, norm, (0, 1), mask), torch.randn(4, 2, 3)
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True, True])):
        part = ball.of(rows)
        assert torch.equal(part.project(point[rows]), ball.project(point)[rows])
        assert torch.equal(part.center, center[rows])
