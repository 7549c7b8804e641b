import pytest
import torch

from lightning_robust.functional.attacks import fgsm
from lightning_robust.functional.norm_ball import as_radius


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
