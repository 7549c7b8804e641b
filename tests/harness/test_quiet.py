import pytest
import torch

from lightning_robust.harness.quiet import isolated_rng


def test_random_numbers_come_back_after_an_error():
    before = torch.get_rng_state()

    @isolated_rng()
    def fail():
        torch.rand(5)
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(before, torch.get_rng_state())
