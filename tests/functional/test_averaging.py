import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_robust.functional.averaging import RunningAverage, interpolate, lerp_into, require_same


def averaged(values, **settings):
    average = RunningAverage(**settings)
    for value in values:
        average.update([torch.as_tensor(value)])
    return average.values()[0]


def test_closed_form():
    assert averaged([1.0, 2.0, 6.0, 11.0]) == 5
    assert averaged([1.0, 2.0, 6.0, 11.0], kind="lawa", window=2) == 8.5
    # after half-lives of one step the weights are 1, 2, 4
    assert averaged([7.0, 14.0, 21.0], kind="ema", half_life=1) == pytest.approx((7 + 28 + 84) / 7)


@pytest.mark.parametrize("every", [1, 5])
def test_ema_decays_by_steps_not_by_updates(every):
    values = torch.randn(40, dtype=torch.float64)
    average = RunningAverage("ema", half_life=7.0, dtype=torch.float64)
    for step in range(every - 1, 40, every):
        average.update([values[step : step + 1]], steps=every)
    taken = torch.arange(every - 1, 40, every)
    weights = 0.5 ** ((39 - taken).double() / 7.0)
    expected = (weights * values[taken]).sum() / weights.sum()
    assert average.values()[0].item() == pytest.approx(expected.item(), rel=1e-12)


def test_nothing_of_the_first_value_lingers():
    """A constant decay of 0.999 that begins with a copy leaves it 90.6 % of the weight after 100 updates."""
    first = averaged([1.0] + [0.0] * 100, kind="ema", half_life=693)
    decay = 0.5 ** (1 / 693)
    assert first.item() == pytest.approx(decay**100 * (1 - decay) / (1 - decay**101), rel=1e-5)
    assert first.item() < 0.0096


@pytest.mark.parametrize("count", [1, 2, 17])
def test_matches_torch(count):
    torch.manual_seed(count)
    model = nn.Linear(5, 3)
    reference, average = AveragedModel(model), RunningAverage()
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        reference.update_parameters(model)
        average.update(list(model.parameters()))
    for mine, theirs in zip(average.values(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-7)


def test_integers_and_bools_are_copied():
    average = RunningAverage()
    for step in (1, 2, 16):
        average.update([torch.tensor(step), torch.tensor(step > 2), torch.tensor(float(step))])
    count, flag, mean = average.values()
    assert (count.item(), flag.item(), count.dtype) == (16, True, torch.int64)
    assert mean.item() == pytest.approx(19 / 3)


def test_an_average_in_bf16_never_moves_and_in_fp32_does():
    """5000 steps of decay 0.999 from 1.0 towards 1.5: 1.4966 in fp32, 1.0 in bf16."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.ones(1, dtype=dtype)
        for _ in range(5000):
            lerp_into([tensor], [torch.full((1,), 1.5, dtype=torch.bfloat16)], 0.001)
        results[dtype] = tensor.item()
    assert results[torch.float32] == pytest.approx(1.5 - 0.5 * 0.999**5000, abs=2e-4)
    assert results[torch.bfloat16] == 1.0


@pytest.mark.parametrize("settings", [{}, {"kind": "ema", "half_life": 3.0}, {"kind": "lawa", "window": 3}])
def test_resume(settings):
    values = [torch.randn(4) for _ in range(9)]
    whole, part = RunningAverage(**settings), RunningAverage(**settings)
    for value in values[:5]:
        whole.update([value])
        part.update([value])
    stream = io.BytesIO()
    torch.save(part.state_dict(), stream)
    stream.seek(0)
    resumed = RunningAverage(**settings)
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    for value in values[5:]:
        whole.update([value])
        resumed.update([value])
    assert torch.equal(whole.values()[0], resumed.values()[0])


def test_updates_keep_their_memory_and_follow_a_change_of_type():
    average = RunningAverage("ema", half_life=2)
    average.update([torch.zeros(3), torch.tensor(1)])
    places = [tensor.data_ptr() for tensor in average.values()]
    average.update([torch.ones(3), torch.tensor(2)])
    average.update([torch.ones(3, dtype=torch.bfloat16), torch.tensor(3)])
    assert [tensor.data_ptr() for tensor in average.values()] == places
    assert average.values()[1] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_interpolation_ends_bit_for_bit(dtype):
    start, end = ({"w": torch.randn(100, dtype=dtype), "n": torch.tensor(n)} for n in (1, 2))
    for alpha, expected in ((0.0, start), (1.0, end)):
        found = interpolate(start, end, alpha)
        assert torch.equal(found["w"], expected["w"])
        assert found["n"] == expected["n"]
    middle = interpolate(start, end, 0.5)["w"].double()
    torch.testing.assert_close(middle, (start["w"].double() + end["w"].double()) / 2, rtol=2e-3, atol=1e-3)


def test_rejects_what_differs():
    with pytest.raises(ValueError, match="lacks a and has b besides"):
        require_same({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"Expected w of shape \(2,\) in x.ckpt, but got \(3,\)"):
        require_same({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, "x.ckpt")
    average = RunningAverage()
    average.update([torch.zeros(1)])
    with pytest.raises(ValueError, match="Expected 1 tensors"):
        average.update([torch.zeros(1), torch.zeros(1)])


@pytest.mark.parametrize(
    "settings", [{"kind": "ema"}, {"kind": "ema", "half_life": 0}, {"kind": "lawa"}, {"kind": "mean"}]
)
def test_rejects_bad_settings(settings):
    with pytest.raises(ValueError, match="Expected"):
        RunningAverage(**settings)


@pytest.mark.parametrize(
    "settings", [{"kind": "uniform"}, {"kind": "ema", "half_life": 2}, {"kind": "lawa", "window": 3}]
)
def test_a_tensor_of_another_shape_is_copied_and_the_others_averaged(settings):
    average = RunningAverage(**settings)
    for size, value in ((1, 1.0), (1, 3.0), (2, 5.0), (2, 7.0)):
        average.update([torch.full((2,), value), torch.full((size,), value)])
        if (size, value) == (2, 5.0):
            assert torch.equal(average.values()[1], torch.full((2,), 5.0))
    plain = RunningAverage(**settings)
    for value in (1.0, 3.0, 5.0, 7.0):
        plain.update([torch.full((2,), value)])
    assert torch.equal(average.values()[0], plain.values()[0])
    assert average.values()[1].shape == (2,)
    assert 5.0 < average.values()[1][0].item() <= 7.0


MASK = torch.full((3, 3), -torch.inf).triu(1)


@pytest.mark.parametrize(
    "settings", [{"kind": "uniform"}, {"kind": "ema", "half_life": 2}, {"kind": "lawa", "window": 2}]
)
def test_infinity_that_stays_is_no_nan(settings):
    """As of a mask that is a buffer, beside weights that are averaged as ever."""
    both, alone = RunningAverage(**settings), RunningAverage(**settings)
    for value in (1.0, 2.0, 6.0, 11.0):
        both.update([torch.tensor([value]), MASK])
        alone.update([torch.tensor([value])])
    assert torch.equal(both.values()[0], alone.values()[0])
    assert torch.equal(both.values()[1], MASK)


def test_a_snapshot_that_was_infinite_is_gone_with_its_window():
    average = RunningAverage("lawa", window=2)
    for value in (torch.inf, 1.0, 2.0, 4.0):
        average.update([torch.tensor([value])])
    assert average.values()[0] == 3


def test_ends_of_an_interpolation_are_exact_where_one_is_infinite():
    start, end = {"w": torch.tensor([-torch.inf, 1.0])}, {"w": torch.tensor([5.0, 3.0])}
    assert torch.equal(interpolate(start, end, 0.0)["w"], start["w"])
    assert torch.equal(interpolate(start, end, 1.0)["w"], end["w"])
    assert torch.equal(interpolate({"m": MASK}, {"m": MASK}, 0.5)["m"], MASK)
