"""Golden tensors and deployed dumps: planted differences of inputs and engines, and dumps that do not fit."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import available
from lightning_robust.deployment.golden import (
    Golden,
    check_golden,
    check_targets,
    make_golden,
    read_golden,
    write_golden,
)
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.functional.pixels import PixelSpace

PIXELS = PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


class Line(nn.Module):
    """The mean of the red channel, in pixels: moves with its input, linearly."""

    def forward(self, images):
        return 100 * images[:, 0].mean(1)

    def decode(self, outputs):
        return {"x_px": outputs}


def roads(count=4):
    """Smooth pictures on 256 levels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 8, generator=generator)
    x = nn.functional.interpolate(coarse, size=(48, 64), mode="bicubic").clamp(0, 1)
    return (x * 255).round() / 255


@pytest.fixture(scope="module")
def golden():
    args = (PIXELS.from_pixels(roads()),)
    return make_golden(Line(), args, {"mean": PIXELS.mean, "std": PIXELS.std})


def dump(golden, inputs=None, outputs=None):
    return Golden({} if inputs is None else {"input": inputs}, {} if outputs is None else {"output": outputs}, {})


def check(golden, dumped):
    module = Line()
    return check_golden(golden, dumped, module, module.decode)


def test_round_trip(golden, tmp_path):
    write_golden(golden, tmp_path / "golden.npz")
    back = read_golden(tmp_path / "golden.npz")
    assert list(back.inputs) == ["input"]
    assert np.array_equal(back.inputs["input"], golden.inputs["input"])
    assert np.array_equal(back.outputs["output"], golden.outputs["output"])
    assert back.metadata == dict(golden.metadata)


def test_the_same_dump_is_no_distance(golden):
    report = check(golden, dump(golden, golden.inputs["input"], golden.outputs["output"]))
    assert report.whole["x_px_max"] == report.engine["x_px_max"] == 0
    assert report.preprocessing["x_px_max"] < 1e-4
    assert report.pictures["input"].causes == ()


def test_input_and_engine_are_told_apart(golden):
    """The deployed input is 0.02 brighter, which moves the outputs by 2; its engine adds 0.25."""
    brighter = golden.inputs["input"] + np.float32(0.02)
    outputs = golden.outputs["output"] + np.float32(2.25)
    report = check(golden, dump(golden, brighter, outputs))
    assert report.unit == "x_px_p99"
    assert report.whole["x_px_p99"] == pytest.approx(2.25, abs=1e-4)
    assert report.preprocessing["x_px_p99"] == pytest.approx(2.0, abs=1e-3)
    assert report.engine["x_px_p99"] == pytest.approx(0.25, abs=1e-3)
    assert (
        report.sentence()
        == "The deployed outputs are 2.25 x_px_p99 away: 2 come from the input, 0.25 come from the engine."
    )


def test_outputs_alone_are_the_engine_on_golden_inputs(golden):
    report = check(golden, dump(golden, None, golden.outputs["output"] + np.float32(0.5)))
    assert report.preprocessing == {}
    assert report.engine["x_px_max"] == report.whole["x_px_max"] == pytest.approx(0.5, abs=1e-4)


def test_inputs_alone_are_the_preprocessing(golden):
    report = check(golden, dump(golden, golden.inputs["input"] + np.float32(0.02)))
    assert report.whole == report.engine == {}
    assert report.preprocessing["x_px_max"] == pytest.approx(2.0, abs=1e-3)
    assert report.sentence() == "The deployed inputs alone move PyTorch's outputs by 2 x_px_p99."


def test_without_a_module_only_the_whole_is_known(golden):
    report = check_golden(golden, dump(golden, golden.inputs["input"], golden.outputs["output"] + np.float32(1)))
    assert report.unit == "rel_l2"
    assert report.whole["max_abs"] == pytest.approx(1.0, abs=1e-4)
    assert report.preprocessing == report.engine == {}


def test_the_cause_in_deployed_pictures_is_named(golden):
    deployed = PIXELS.from_pixels(CATALOGUE["bgr"].deployed(roads())).numpy()
    report = check(golden, dump(golden, deployed))
    assert report.pictures["input"].causes[0].name == "channel_order"


@pytest.mark.parametrize(
    "arrange",
    [lambda x: x.movedim(1, 3), lambda x: x.unflatten(0, (2, 2)), lambda x: x.unflatten(0, (2, 2)).movedim(2, 1)],
)
def test_channels_last_and_clips_have_causes_too(arrange):
    """As the network takes them, on both sides."""

    class Mean(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1).mean(1)

    exact = make_golden(Mean(), (arrange(PIXELS.from_pixels(roads())),), {"mean": PIXELS.mean, "std": PIXELS.std})
    deployed = arrange(PIXELS.from_pixels(CATALOGUE["bgr"].deployed(roads()))).numpy()
    report = check_golden(exact, dump(exact, deployed))
    assert report.pictures["input"].causes[0].name == "channel_order"
    assert report.notes == ()


def test_half_precision_dumps_are_compared_and_told(golden):
    report = check(golden, dump(golden, golden.inputs["input"].astype(np.float16)))
    assert report.notes == ("The deployed side dumped input 'input' as float16; it was compared as float32.",)
    assert report.inputs["input"]["max_abs"] < 2e-3


def test_inputs_that_were_not_dumped_are_told():
    golden = Golden({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, {"y": np.ones(2)}, {})
    report = check_golden(golden, Golden({"a": np.ones((2, 3))}, {}, {}))
    assert report.notes == ("The deployed side did not dump the inputs ['b'].",)


@pytest.mark.parametrize(
    ("pictures", "change", "why"),
    [
        (lambda x: x[..., :12, :12], lambda x: x + 0.02, r"at least 28 x 28 pixels, but got \(4, 3, 12, 12\)"),
        (lambda x: x, lambda x: np.where(x > 2.0, np.nan, x), "Expected finite deployed pictures"),
        (lambda x: (x * 50 + 100).astype(np.int32), lambda x: x + 1, "uint8 or floating, but got torch.int32"),
    ],
)
def test_pictures_without_a_fingerprint_keep_their_numbers(golden, pictures, change, why):
    """All that is left out is the name of the cause; 0.02 more of an input moves the output by 2."""

    class Mean(nn.Module):
        def forward(self, images):
            return 100 * images.float()[:, 0].mean((1, 2))

    args = (torch.from_numpy(np.ascontiguousarray(pictures(golden.inputs["input"]))),)
    exact = make_golden(Mean(), args)
    deployed = change(exact.inputs["input"]).astype(exact.inputs["input"].dtype)
    report = check_golden(exact, dump(golden, deployed, exact.outputs["output"] + np.float32(3)), Mean())
    assert report.pictures == {}
    (note,) = report.notes
    assert note.startswith("What differs in the pictures of input 'input' is not named: Expected ")
    assert re.search(why, note)
    assert report.whole["max_abs"] == pytest.approx(3.0, abs=1e-4)
    if np.isfinite(deployed).all():
        step = 2.0 if deployed.dtype == np.float32 else 100.0
        assert report.preprocessing["max_abs"] == pytest.approx(step, abs=1e-2)
        assert report.engine["max_abs"] == pytest.approx(abs(3.0 - step), abs=1e-2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x.transpose(0, 2, 3, 1), r"channels come last: transpose\(0, 3, 1, 2\)"),
        (lambda x: x[:2], "It holds 2 samples instead of 4"),
        (lambda x: x[0], r"dimension of samples is missing: array\[None\]"),
        (lambda x: x[..., :32], "Dump the same samples"),
        (lambda x: (x * 50 + 100).astype(np.uint8), "as float32, but got uint8.*after normalisation"),
    ],
)
def test_rejects_other_shapes_and_types(golden, change, match):
    with pytest.raises(ValueError, match=match):
        check(golden, dump(golden, change(golden.inputs["input"])))


def test_rejects_other_names(golden):
    wrong = dataclasses.replace(golden, inputs={"image": golden.inputs["input"]})
    with pytest.raises(ValueError, match=r"named \['input'\], but got \['image'\]"):
        check(golden, wrong)


def test_rejects_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_golden(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"Expected an \.npz file"):
        read_golden(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", image=np.ones(3))
    with pytest.raises(ValueError, match=r"got \['image'\]"):
        read_golden(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", **{"input/x": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=r"Expected an \.npz file"):
        read_golden(tmp_path / "objects.npz")


def test_arguments_keep_their_structure(tmp_path):
    """A module that takes a dict is called with one, from the file as from memory."""

    class Both(nn.Module):
        def forward(self, batch, scale):
            return scale * (batch["a"] + batch["b"][0])

    args = ({"a": torch.ones(3, 2), "b": [torch.ones(3, 2)]}, torch.full((3, 1), 2.0))
    write_golden(make_golden(Both(), args), tmp_path / "golden.npz")
    golden = read_golden(tmp_path / "golden.npz")
    name = next(iter(golden.inputs))
    found = check_golden(golden, Golden({name: 1.5 * golden.inputs[name]}, {}), Both())
    assert found.preprocessing["max_abs"] == 1.0
    (report,) = check_targets(golden, Both(), available(["torch-fp32"])).values()
    assert report.engine["max_abs"] == 0


def test_scalars_stay_scalars(tmp_path):
    """A rate beside the samples, and a number among the outputs."""

    class Scaled(nn.Module):
        def forward(self, x, rate):
            return {"scaled": x * rate, "rate": 2 * rate}

    args = torch.rand(4, 3), torch.tensor(0.5)
    golden = make_golden(Scaled(), args)
    write_golden(golden, tmp_path / "golden.npz")
    dumped = read_golden(tmp_path / "golden.npz")
    assert {name: array.shape for name, array in (dumped.inputs | dumped.outputs).items()} == {
        name: array.shape for name, array in (golden.inputs | golden.outputs).items()
    }
    report = check_golden(golden, dumped, Scaled())
    assert report.whole["max_abs"] == 0
    assert report.preprocessing["max_abs"] == 0


@pytest.mark.parametrize("text", ["engine 10.3", "[1]", '"x"'])
def test_metadata_of_another_kind_are_named_with_their_file(tmp_path, text):
    path = tmp_path / "dump.npz"
    np.savez(path, **{"output/output": np.zeros(2), "metadata": np.array(text)})
    with pytest.raises(ValueError, match=r"dump\.npz to be a mapping in JSON"):
        read_golden(path)
