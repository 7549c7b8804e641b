"""What quantisation takes from SGD, SWA, EMA and SWALP: CIFAR-10 pictures in points, lanes in pixels.

    python benchmarks/quantised_averages.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/averages]

SWALP (Yang et al. 2019, arXiv:1904.11943) trains in eight bits and averages, and SWA is said to make networks robust
to the noise of quantisation. The weights of all convolutions and linear layers are rounded to 8, 6 and 4 bits, by
channel and symmetric, all else left in fp32; and int8 is executed, weights and activations, by ONNX Runtime and by
OpenVINO where it is installed, with ranges from training pictures. CIFAR-10: the weights of ``averages.py``, kept in
the folder that ``landscape.py`` shares; accuracy on all test pictures, points lost by rounding, and the share of
pictures whose class changed. Lanes: commands of ``lightning-robust`` as in ``suite_lanes.py`` (2,000 rendered
pictures, four epochs); the mean error on 256 held-out pictures in px of 960, how far lines are from those of the same
network in fp32 (mean and p99), and the share of their points that are lost. Finished rows are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import suite_lanes
import torch
from averages import ROWS as TRAINED
from averages import accuracy, data_of, tensors, weights_of
from cifar import SmallResNet
from int8 import tried
from rows import Columns, measured_run, options, run_rows
from torch import Tensor, nn

from lightning_robust.cli import RobustCLI
from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.functional.quantization import quantize_channels

CIFAR, LANES = "CIFAR-10, ", "lanes, "
CIFAR_ROWS = [f"{CIFAR}{name}" for name in TRAINED if name not in ("the start", "greedy soup", "FGSM-RS")]
LANE_ROWS = [f"{LANES}{name}" for name in ("plain", "SWA", "EMA", "SWALP, 8 bits")]
BITS, ENGINES = (8, 6, 4), ("onnxruntime-int8", "openvino-int8")
FORMS = (*(f"{bits} bits" for bits in BITS), *ENGINES)
CALIBRATION = 256
CIFAR_COLUMNS: Columns = {
    "accuracy": ("fp32", 100, ".2f"),
    **{f"lost, {form}": (f"lost/{form}", 100, ".2f") for form in FORMS},
    **{f"changed, {form}": (f"changed/{form}", 100, ".2f") for form in FORMS},
}
LANE_COLUMNS: Columns = {
    "error": ("fp32", 1, ".2f"),
    **{f"error, {form}": (f"error/{form}", 1, ".2f") for form in FORMS},
    **{f"distance, {form}": (f"distance/{form}", 1, ".2f") for form in FORMS},
    **{f"p99, {form}": (f"p99/{form}", 1, ".1f") for form in FORMS},
    **{f"lost %, {form}": (f"lost/{form}", 100, ".1f") for form in FORMS},
}


def rounded(module: nn.Module, bits: int) -> nn.Module:
    """A copy, in evaluation mode, with the weights of all convolutions and linear layers in so many bits.

    Raises:
        ValueError: If there is no such layer.
    """
    copy = frozen_copy(module)
    layers = [part for part in copy.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    if not layers:
        raise ValueError("Expected convolutions or linear layers to quantise, but the module has none.")
    for layer in layers:
        layer.weight.data = quantize_channels(layer.weight, bits)
    return copy


@torch.no_grad()
def outputs_of(module: nn.Module, images: Tensor, calibration: Tensor) -> dict[str, list[Tensor]]:
    """The outputs of a network in fp32 and in each form; none where an engine is not installed.

    Raises:
        ValueError: If there are no pictures to measure on or to calibrate on.
    """
    for name, pictures in (("to measure on", images), ("to calibrate int8 on", calibration)):
        if not len(pictures):
            raise ValueError(f"Expected pictures {name}, but got none. Give at least one, better a hundred.")

    def run(network: nn.Module) -> list[Tensor]:
        made = [network(chunk) for chunk in images.split(250)]
        parts = [[out] if isinstance(out, Tensor) else list(out) for out in made]
        return [torch.cat(columns) for columns in zip(*parts, strict=True)]

    found = {"fp32": run(frozen_copy(module)), **{f"{bits} bits": run(rounded(module, bits)) for bits in BITS}}
    settings = BuildSettings(calibration_samples=len(calibration))
    subject = Subject(frozen_copy(module), (images,), settings, (calibration,))
    return found | {target: tried(target, subject).outputs for target in ENGINES}


def by_form(
    found: Mapping[str, list[Tensor]], measure: Callable[[list[Tensor]], dict[str, float]], tags: Sequence[str]
) -> dict[str, float]:
    """Numbers of every form under ``tag/form``; NaN where an engine is not installed."""
    numbers = {}
    for form in FORMS:
        values = measure(found[form]) if found[form] else dict.fromkeys(tags, float("nan"))
        numbers |= {f"{tag}/{form}": values[tag] for tag in tags}
    return numbers


def of_classes(found: Mapping[str, list[Tensor]], labels: Tensor) -> dict[str, float]:
    """Accuracy in fp32; of each form the accuracy that it loses, and the share of classes that it changes."""
    before = found["fp32"][0].argmax(1)

    def measure(outputs: list[Tensor]) -> dict[str, float]:
        now = outputs[0].argmax(1)
        right = [(answer == labels).double().mean().item() for answer in (before, now)]
        return {"lost": right[0] - right[1], "changed": (now != before).double().mean().item()}

    return {"fp32": accuracy(lambda logits: logits, (found["fp32"][0], labels))} | by_form(
        found, measure, ("lost", "changed")
    )


def of_lines(
    found: Mapping[str, list[Tensor]], columns: Tensor, decode: Callable[[tuple[Tensor, Tensor]], dict[str, Tensor]]
) -> dict[str, float]:
    """Mean error in fp32; of each form its error, its distance to fp32 and the share of points that it loses."""
    lines = {form: decode((one[0], one[1]))["lateral_px"].double() for form, one in found.items() if one}
    before = lines["fp32"]

    def measure(outputs: list[Tensor]) -> dict[str, float]:
        now = decode((outputs[0], outputs[1]))["lateral_px"].double()
        moved = (now - before).abs()
        moved = moved[~moved.isnan()]
        lost = (now.isnan() & ~before.isnan()).sum() / (~before.isnan()).sum()
        return {
            "error": (now - columns).abs().nanmean().item(),
            "distance": moved.mean().item(),
            "p99": float(np.quantile(moved.numpy(), 0.99)) if len(moved) else float("nan"),
            "lost": lost.item(),
        }

    return {"fp32": (before - columns).abs().nanmean().item()} | by_form(
        found, measure, ("error", "distance", "p99", "lost")
    )


def of_cifar(name: str, seed: int, archive: Path, out: Path) -> dict[str, float]:
    """A row on CIFAR-10 pictures."""
    module = SmallResNet().eval()
    module.load_state_dict(weights_of(name, seed, archive, out))
    data, _ = data_of(archive, out)
    images, labels = tensors(data, data.test.pictures.numpy(), data.test.labels.numpy())
    every = len(data.train) // CALIBRATION
    calibration, _ = tensors(data, data.train.pictures.numpy()[::every][:CALIBRATION], np.zeros(CALIBRATION))
    return of_classes(outputs_of(module, images, calibration), labels)


def of_lanes(cli: RobustCLI) -> dict[str, float]:
    """A row on lanes, of the weights that training returned."""
    data = cli.datamodule
    data.setup("validate")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    images, columns = (torch.cat(parts) for parts in zip(*batches, strict=True))
    training = data.train_dataloader()
    calibration: list[Tensor] = []
    for batch in training:
        calibration.append(data.on_after_batch_transfer(batch, 0)[0])
        if sum(map(len, calibration)) >= CALIBRATION:
            break
    found = outputs_of(cli.model, images, torch.cat(calibration)[:CALIBRATION])
    return of_lines(found, columns, cli.model.decode)


def measured(name: str, seed: int, folder: Path, archive: Path) -> dict[str, float]:
    """One row: train where that is missing, then quantise."""
    torch.set_num_threads(1)
    if name.startswith(CIFAR):
        return of_cifar(name.removeprefix(CIFAR), seed, archive, folder.parents[2])
    switches = suite_lanes.ROWS[name.removeprefix(LANES)]
    return measured_run(suite_lanes.CONFIG, seed, folder, [*suite_lanes.RECIPE, *switches], of_lanes)


def main() -> None:
    """Run what is missing and print the tables."""
    given = options(__doc__, "runs/averages", [*CIFAR_ROWS, *LANE_ROWS], files=["archive"])
    own = argparse.Namespace(**{**vars(given), "out": given.out / "quantised"})
    results = run_rows(own, measured, given.archive)
    for rows, columns in ((CIFAR_ROWS, CIFAR_COLUMNS), (LANE_ROWS, LANE_COLUMNS)):
        print("\n" + results.table([name for name in rows if name in given.only], given.seeds, columns))


if __name__ == "__main__":
    main()
