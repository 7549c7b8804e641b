"""The pictures of the documents: a replay as an animation and the top of a parity page for README, and corruptions.

    python benchmarks/pictures.py --run runs/lanes/version_0
    python benchmarks/pictures.py  # the corruptions alone, in seconds

The run is one of `make demo`. The road is none that its detector was trained on; in the animation the head computes in
fp16 too, which the detector's list `keep_fp32` prevents elsewhere. The page is that of `lightning-robust parity`. Needs
a headless Chromium; takes three minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from lightning_robust.cli import main as run_cli
from lightning_robust.demo.lanes.rendering import render_roads
from lightning_robust.deployment.engines import BuildSettings, available
from lightning_robust.deployment.pixels.corruptions import corruptions
from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.deployment.replay.measure import replay
from lightning_robust.deployment.replay.scenes import animate
from lightning_robust.harness.run_folder import locate_run
from lightning_robust.harness.runs import load_module

_SEED, _ROAD = 2024, -32  # a bend to the left between solid lines, by daylight
_FRAMES, _SIZE = 32, (288, 512)
_GIF_BYTES, _PAGE_BYTES = 1_500_000, 300_000
_SHEET_BYTES, _TILE, _SEVERITIES, _LINE = 200_000, (90, 160), (1, 3, 5), 16
_PAGE = (1040, 720)
_TARGETS = "[onnxruntime-fp32,emulated-fp16,emulated-bf16]"
_LIMITS = "{emulated-fp16/lateral_px_known_p99: 0.1, emulated-bf16/lateral_px_known_p99: 0.1}"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def render_drive(folder: Path) -> Path:
    """Frames of one road, 25 a second, as files."""
    number = torch.arange(_FRAMES)
    roads = render_roads(torch.full((_FRAMES,), _ROAD), seed=_SEED, height=_SIZE[0], width=_SIZE[1], frame=number)
    for frame, image in zip(number.tolist(), roads.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{frame:03}.png")
    return folder


def write_animation(checkpoint: Path, target: str, path: Path) -> None:
    """The road through PyTorch and through one target."""
    settings = BuildSettings(device="cpu", keep_fp32=[])
    with tempfile.TemporaryDirectory() as folder:
        recording = open_recording(render_drive(Path(folder)))
        report = replay(load_module(checkpoint), recording, available([target], settings), settings=settings)
        animate(report, recording, path, _FRAMES, _GIF_BYTES)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {target} up to {report.runtimes[target].p99:.2g} px (p99)")


def write_page(checkpoint: Path, folder: Path) -> Path:
    """The parity page of a checkpoint."""
    options = [f"--ckpt={checkpoint}", f"--targets={_TARGETS}", f"--tolerance={_LIMITS}", f"--output={folder}"]
    with contextlib.suppress(SystemExit):  # 1 says that a limit is not kept
        run_cli(["parity", *options])
    return folder / "parity.html"


def write_screenshot(page: Path, path: Path) -> None:
    """The top of a page in its light colours."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"Expected one of {', '.join(_BROWSERS)} for the picture of the page, but found none.")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--blink-settings=preferredColorScheme=1"]
    size = f"--window-size={_PAGE[0]},{_PAGE[1]}"
    shot = page.with_suffix(".png")
    command = [browser, *options, size, f"--screenshot={shot}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(shot).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    if path.stat().st_size > _PAGE_BYTES:
        raise SystemExit(f"Expected at most {_PAGE_BYTES / 1e3:.0f} kB.")


def write_corruptions(path: Path) -> None:
    """Every corruption of one road in three severities, two to a row."""
    road = render_roads(torch.tensor([_ROAD]), seed=_SEED, height=_SIZE[0], width=_SIZE[1]).images.float() / 255
    names = list(dict.fromkeys(each.name for each in corruptions()))
    (height, width), half = _TILE, len(names) // 2
    sheet = Image.new("RGB", (2 * len(_SEVERITIES) * width + 8, half * (height + _LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        left, top = (number // half) * (len(_SEVERITIES) * width + 8), (number % half) * (height + _LINE)
        draw.text((left + 2, top + 1), name.replace("_", " "), "black", ImageFont.load_default(12))
        for place, severity in enumerate(_SEVERITIES):
            (corruption,) = corruptions(f"{name}@{severity}")
            small = torch.nn.functional.interpolate(corruption(road), _TILE, mode="bilinear", antialias=True)[0]
            tile = Image.fromarray((small * 255).round().byte().permute(1, 2, 0).numpy())
            sheet.paste(tile, (left + place * width, top + _LINE))
    sheet.save(path, quality=85, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    if path.stat().st_size > _SHEET_BYTES:
        raise SystemExit(f"Expected at most {_SHEET_BYTES / 1e3:.0f} kB.")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run of make demo; without it the corruptions alone")
    parser.add_argument("--target", default="emulated-fp16", help="the deployed side of the animation")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    write_corruptions(given.out / "corruptions.jpg")
    if given.run is None:
        return
    checkpoint = Path(locate_run(str(given.run), None).checkpoint)
    write_animation(checkpoint, given.target, given.out / "replay.gif")
    with tempfile.TemporaryDirectory() as folder:
        write_screenshot(write_page(checkpoint, Path(folder)), given.out / "parity.png")


if __name__ == "__main__":
    main()
