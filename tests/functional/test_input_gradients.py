import pytest
import torch
from torch import nn

from lightning_robust.functional.input_gradients import input_gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_closed_form(dtype):
    """The gradient of sum w x is w, in fp32 or wider; other inputs have none, and no parameter gets one."""
    w = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    x, unused, layer = torch.rand(3, dtype=dtype).requires_grad_(), torch.rand(2).requires_grad_(), nn.Linear(3, 1)
    first, second = input_gradients((x * w).sum() + layer.weight.sum().to(dtype), [x, unused])
    assert torch.equal(first.double(), w.double())
    assert first.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(second, torch.zeros(2))
    assert layer.weight.grad is None


def test_gradients_too_small_for_fp16_are_there():
    x = torch.ones(4, dtype=torch.float16).requires_grad_()
    (gradient,) = input_gradients((x.float() * 2e-8).sum(), [x])
    assert gradient.tolist() == pytest.approx([2e-8] * 4, rel=0.05)
    y = torch.ones(4, dtype=torch.float16).requires_grad_()
    assert torch.autograd.grad((y.float() * 2e-8).sum(), y)[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("loss", [torch.ones(()), torch.ones((), requires_grad=True) * 2])
def test_rejects_a_loss_without_the_inputs(loss):
    with pytest.raises(ValueError, match="depends on the inputs"):
        input_gradients(loss, [torch.ones(2, requires_grad=True)])


class Full(torch.autograd.Function):
    """A layer that has no memory for its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("no memory")


def test_an_error_of_the_network_is_not_taken_for_a_loss_without_inputs():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError):
        input_gradients(Full.apply(x).sum(), [x])
