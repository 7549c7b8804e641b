"""How well a lane detector trained on rendered roads follows the two ego lines of a real recording.

The reference is made here, by classical vision on the recording at full resolution: bright runs of the width of a
painted line, a robust curve through those near the expected line, smoothed over time. It marks the middle of the
stripe. Nothing of it is used in training.

    python benchmarks/lanes_recording.py --checkpoint lanes.ckpt --recording solidWhiteRight.mp4 --picture sheet.png

Needs opencv (``pip install lightning-robust[dev]``).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROWS = np.arange(350, 521, 10)
"""Rows of the recording at which lines are compared, in pixels of 540."""
_BAND = 22.0


class Reference(NamedTuple):
    """Columns of the left and right line, (T, 2, R), and whether paint was seen there, bool."""

    columns: np.ndarray
    painted: np.ndarray


def read_frames(path: Path) -> np.ndarray:
    """RGB frames of a recording, uint8 (T, H, W, 3)."""
    cv2 = _cv2()
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        read, frame = capture.read()
        if not read:
            break
        frames.append(frame[:, :, ::-1])
    if not frames:
        raise SystemExit(f"Expected a recording at {path}, but nothing could be read from it.")
    return np.ascontiguousarray(np.stack(frames))


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise SystemExit("This needs opencv: pip install opencv-python-headless") from error
    return cv2


def stripes(frame: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middles of bright stripes about as wide as a painted line: rows, columns and contrast.

    In every row a stripe is a run of pixels brighter than the asphalt within a few stripe widths to both sides. The
    middle is the contrast-weighted mean of the run, in pixels.
    """
    grey = frame.astype(np.float32).mean(2)
    found: list[tuple[float, float, float]] = []
    for row in range(int(horizon) + 18, len(frame)):
        expected = 0.115 * (row - horizon)
        reach = round(1.6 * expected) + 3
        line = grey[row]
        background = np.maximum(_shifted_mean(line, -reach), _shifted_mean(line, reach))
        contrast = np.clip(line - background - 12, 0, None)
        inside = contrast > 0
        starts = np.flatnonzero(inside & ~np.r_[False, inside[:-1]])
        stops = np.flatnonzero(inside & ~np.r_[inside[1:], False]) + 1
        for start, stop in zip(starts, stops, strict=True):
            if 0.3 * expected <= stop - start <= 2.2 * expected + 3 and contrast[start:stop].max() > 15:
                weight = contrast[start:stop]
                middle = float((np.arange(start, stop) * weight).sum() / weight.sum())
                found.append((float(row), middle, float(weight.max())))
    rows, columns, strength = np.array(found).T
    return rows, columns, strength


def _shifted_mean(line: np.ndarray, shift: int) -> np.ndarray:
    """Mean of five pixels, `shift` pixels away."""
    padded = np.pad(line, 2, mode="edge")
    mean = np.convolve(padded, np.full(5, 0.2), mode="valid")
    at = np.clip(np.arange(len(line)) + shift, 0, len(line) - 1)
    return mean[at]


def reference_lines(frames: np.ndarray, horizon: float) -> Reference:
    """Both ego lines in every frame, from the stripes of all frames.

    Args:
        frames: RGB, (T, H, W, 3).
        horizon: Row of the horizon, in pixels; needed only roughly.
    """
    points = [stripes(frame, horizon) for frame in frames]
    columns, painted = [], []
    for first_guess in _vote(points, frames.shape[2], horizon):
        line, seen = _track(points, first_guess, horizon)
        columns.append(line)
        painted.append(seen)
    return Reference(np.stack(columns, 1), np.stack(painted, 1))


def _vote(points: list[tuple[np.ndarray, ...]], width: int, horizon: float) -> list[np.ndarray]:
    """Straight left and right line through most stripes of the first second, as columns at the first and last row."""
    rows = np.concatenate([p[0] for p in points[:25]])
    columns = np.concatenate([p[1] for p in points[:25]])
    share = (rows - ROWS[0]) / (ROWS[-1] - ROWS[0])
    guesses = []
    for side in (-1, 1):
        near = width / 2 + side * np.arange(60, width / 2, 8)
        far = width / 2 + side * np.arange(-20, 200, 8)
        bottom, top = (grid.ravel() for grid in np.meshgrid(near, far))
        tolerance = 3 + 10 * share
        votes = [
            int((np.abs(t + (b - t) * share - columns) < tolerance).sum()) for b, t in zip(bottom, top, strict=True)
        ]
        best = int(np.argmax(votes))
        guesses.append(np.array([top[best], bottom[best]]))
    return guesses


def _basis(rows: np.ndarray, horizon: float) -> np.ndarray:
    """A constant, a slope, and the hyperbola into which a bend of the road projects, (P, 3)."""
    return np.stack([np.ones_like(rows), (rows - 435.0) / 85.0, 60.0 / (rows - horizon)], 1)


def _track(points: list[tuple[np.ndarray, ...]], guess: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """One line in every frame: least squares with outliers left out in three rounds, parameters tied over time."""
    slope = (guess[1] - guess[0]) / (ROWS[-1] - ROWS[0])
    start = np.array([guess[0] + slope * (435.0 - ROWS[0]), slope * 85.0, 0.0])
    theta = np.tile(start, (len(points), 1))
    for gate in (30.0, 12.0, 6.0, 4.0):
        theta = _smooth_fit(points, theta, gate, horizon)
    target = _basis(ROWS.astype(float), horizon)
    painted = np.zeros((len(points), len(ROWS)), bool)
    for number, (rows, columns, _) in enumerate(points):
        near = np.abs(columns - _basis(rows, horizon) @ theta[number]) < 4.0
        painted[number] = [bool((np.abs(rows[near] - row) <= 2).any()) for row in ROWS]
    return theta @ target.T, painted


def _smooth_fit(points: list[tuple[np.ndarray, ...]], theta: np.ndarray, gate: float, horizon: float) -> np.ndarray:
    """Least squares over all frames, where the parameters of neighbouring frames hold each other."""
    count, size = theta.shape
    normal, right = np.zeros((count, size, count, size)), np.zeros((count, size))
    hold = np.diag([1.0, 1.0, 8.0])
    for number, (rows, columns, _) in enumerate(points):
        basis = _basis(rows, horizon)
        close = np.abs(columns - basis @ theta[number]) < gate * (0.4 + (rows - horizon) / 200.0)
        basis = basis[close]
        normal[number, :, number] += 0.1 * basis.T @ basis
        right[number] += 0.1 * basis.T @ columns[close]
        if number:
            for a, b, sign in (
                (number, number, 1),
                (number - 1, number - 1, 1),
                (number, number - 1, -1),
                (number - 1, number, -1),
            ):
                normal[a, :, b] += sign * hold
    return np.linalg.solve(normal.reshape(count * size, -1), right.ravel()).reshape(count, size)


def at_rows(rows: np.ndarray, columns: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Predicted columns (T, 2, R) at `ROWS`, linearly between anchors; NaN unless both neighbours are present."""
    known = np.where(present, columns, np.nan)
    above = np.clip(np.searchsorted(rows, ROWS, side="right") - 1, 0, len(rows) - 2)
    share = (ROWS - rows[above]) / (rows[above + 1] - rows[above])
    return known[..., above] * (1 - share) + known[..., above + 1] * share


def measure(predicted: np.ndarray, reference: Reference) -> dict[str, float]:
    """Lateral error in pixels, share of points found, swing and bend against the reference."""
    error = predicted - reference.columns
    distance = np.abs(error[~np.isnan(error)])
    swing = np.abs(np.diff(error, axis=0))
    bend = np.abs(np.diff(error, n=2, axis=2))
    return {
        "median_px": float(np.median(distance)),
        "p90_px": float(np.percentile(distance, 90)),
        "max_px": float(distance.max()),
        "bias_left_px": float(np.nanmean(error[:, 0])),
        "bias_right_px": float(np.nanmean(error[:, 1])),
        "painted_median_px": float(np.nanmedian(np.abs(error[reference.painted]))),
        "found": float(np.mean(~np.isnan(error))),
        "swing_px": float(np.nanmean(swing)),
        "bend_px": float(np.nanmean(bend)),
    }


def draw(frames: np.ndarray, predicted: np.ndarray, reference: Reference, path: Path, count: int = 6) -> None:
    """Contact sheet: the prediction in red and blue on the reference in green, evenly spaced frames."""
    cv2 = _cv2()
    tiles = []
    for number in np.linspace(0, len(frames) - 1, count).astype(int):
        tile = np.ascontiguousarray(frames[number][:, :, ::-1])
        for columns, colours, radius in (
            (reference.columns, ((90, 220, 60),) * 2, 5),
            (predicted, ((60, 60, 255), (255, 160, 40)), 2),
        ):
            for line in range(2):
                for row, column in zip(ROWS, columns[number, line], strict=True):
                    if not np.isnan(column):
                        cv2.circle(
                            tile, (round(column * 16), int(row) * 16), radius * 16, colours[line], -1, cv2.LINE_AA, 4
                        )
        tiles.append(tile[len(tile) // 2 :])
    sheet = np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles) - 1, 2)])
    cv2.imwrite(str(path), sheet)


def main() -> None:
    """Prints one number a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of LaneDetector")
    parser.add_argument("--recording", type=Path, required=True, help="solidWhiteRight.mp4, 960 x 540")
    parser.add_argument("--picture", type=Path, default=None, help="where the contact sheet goes (PNG)")
    parser.add_argument("--horizon", type=float, default=308.0, help="row of the horizon in the recording")
    arguments = parser.parse_args()

    from lightning_robust.demo.lanes import predict

    frames = read_frames(arguments.recording)
    reference = reference_lines(frames, arguments.horizon)
    predicted = at_rows(*predict(arguments.checkpoint, frames))
    for name, value in measure(predicted, reference).items():
        print(f"{name:18s} {value:8.3f}")
    if arguments.picture is not None:
        draw(frames, predicted, reference, arguments.picture)
        print(f"picture            {arguments.picture}")


if __name__ == "__main__":
    main()
