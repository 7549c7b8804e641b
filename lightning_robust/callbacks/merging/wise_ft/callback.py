"""WiSEFTCallback: after fine-tuning, go back part of the way to where it began, as far as that is more robust.

Hooks, state and logging only; interpolation is done in ``functional``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_robust.callbacks.averaging.callback import SWACallback
from lightning_robust.callbacks.candidates import Candidates, judged_by, output_folder, require_last, save_chosen
from lightning_robust.callbacks.merging.figures import Curve, draw_wise_ft
from lightning_robust.callbacks.merging.greedy_soup.callback import GreedySoupCallback
from lightning_robust.functional.averaging import State, interpolate
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.checkpoints import read_state
from lightning_robust.harness.evaluate import pick
from lightning_robust.harness.logging import log_figure, log_scalars, log_table
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run, refuse_sharded


class WiSEFTCallback(pl.Callback):
    r"""Interpolate between the weights before and after fine-tuning and keep the most robust mixture.

    .. math:: \theta(\alpha) = (1 - \alpha)\,\theta_\text{zero-shot} + \alpha\,\theta_\text{fine-tuned}

    (`Wortsman et al. 2021 <https://arxiv.org/abs/2109.01903>`_). When training has ended, every validation loader of
    the Trainer is evaluated at every alpha. The first loader is in distribution (what was fine-tuned on), the others
    are shifted. Chosen is the alpha with the best mean metric under shift whose in-distribution metric is within
    ``epsilon`` of the best; with one loader it is 0.5, which the paper found near-optimal where nothing is known. The
    module then holds the chosen weights, ``wise_ft.ckpt`` (which loads in Lightning) and ``wise_ft.json`` lie in
    ``dirpath``, and ``ckpt_path="best"`` means them where a ModelCheckpoint monitors the same metric.

    At alpha 0 and 1 the weights are the endpoints bit for bit; between them, BatchNorm statistics are refreshed from
    the training data. Tensors that the zero-shot weights lack or have in another shape (a new head) stay fine-tuned
    at every alpha.

    Logged at the end: ``wise_ft/alpha``, ``wise_ft/in_distribution``, ``wise_ft/shifted``, a table, and the curve on
    logit axes. If it fails, a warning says why and the weights stay as trained.

    Cost: one validation and one BatchNorm pass for each alpha; one copy of the weights in memory during training (and
    in full checkpoints, from which it resumes), three at the end.

    Args:
        zero_shot: File with the weights to go back to; None takes those at the start of the fit.
        alphas: How many, evenly from 0 to 1, or a list of them. 0, 0.5 and 1 are always among them.
        monitor: Metric to judge by, without the ``/dataloader_idx_0`` that Lightning appends; or a list of names, the
            first in distribution, the others shifted. None takes that of a ModelCheckpoint or EarlyStopping callback.
        mode: ``"max"`` or ``"min"``; None likewise.
        epsilon: How much in-distribution performance may be given up, in units of the metric.
        bn_refresh: Recompute BatchNorm statistics of mixtures.
        bn_samples: From about so many training samples on each rank; all if None.
        input_key: Which part of a batch goes into ``forward`` for it: position or name; a list for several arguments.
        dirpath: Folder for the files; None is ``wise_ft`` in the Trainer's log folder.
        on_failure: ``"warn"`` and leave the weights as trained, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range, and in ``setup`` for a file that is missing or cannot be read.
        MisconfigurationException: Without a metric to judge by, under strategies in which no rank has the whole model,
            or if a callback that comes after it would replace the chosen weights.

    Example:
        >>> wise_ft = WiSEFTCallback(monitor="val/acc", mode="max", epsilon=0.01)
        >>> trainer = pl.Trainer(callbacks=[wise_ft], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        zero_shot: str | None = None,
        *,
        alphas: int | list[float] = 11,
        monitor: str | list[str] | None = None,
        mode: Literal["max", "min"] | None = None,
        epsilon: float = 0.005,
        bn_refresh: bool = True,
        bn_samples: int | None = None,
        input_key: int | str | list[int | str] = 0,
        dirpath: str | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        grid = alphas if isinstance(alphas, list) else [i / max(alphas - 1, 1) for i in range(alphas)]
        if not grid or not all(0 <= alpha <= 1 for alpha in grid):
            raise ValueError(f"Expected `alphas` to be a number from 1, or values in [0, 1], but got {alphas}.")
        if epsilon < 0:
            raise ValueError(f"Expected `epsilon` to be at least 0, but got {epsilon}.")
        self.zero_shot, self.alphas = zero_shot, alphas
        self.monitor, self.mode, self.epsilon = monitor, mode, epsilon
        self.bn_refresh, self.bn_samples, self.input_key = bn_refresh, bn_samples, input_key
        self.dirpath, self.on_failure = dirpath, on_failure
        self.chosen: float | None = None
        self.path = ""
        self._grid = sorted({0.0, 0.5, 1.0, *grid})
        self._start: State = {}

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before any training is spent on it."""
        if stage != "fit":
            return
        refuse_sharded(trainer, "WiSEFTCallback")
        require_last(trainer, self, SWACallback | GreedySoupCallback)
        self._judged_by(trainer)
        self._start, self.chosen, self.path = {}, None, ""
        if self.zero_shot is not None:
            _shared(read_state(self.zero_shot), pl_module.state_dict(), self.zero_shot)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights that fine-tuning begins from."""
        if self.zero_shot is None and not self._start:
            self._start = state_on_cpu(pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Interpolate, choose, keep."""
        try:
            self._interpolate(trainer, pl_module)
        except Exception as error:
            if self.on_failure == "raise":
                raise
            rank_zero_warn(f"WiSEFTCallback: the weights stay as trained. {type(error).__name__}: {error}")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The weights that fine-tuning began from."""
        return {"start": dict(self._start)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to where the interrupted run began, not to where it was interrupted."""
        self._start = dict(state_dict["start"])

    def _judged_by(self, trainer: pl.Trainer) -> tuple[str, Literal["max", "min"]]:
        return judged_by(trainer, self.monitor[0] if isinstance(self.monitor, list) else self.monitor, self.mode)

    def _interpolate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor, mode = self._judged_by(trainer)
        candidates = Candidates(
            trainer,
            pl_module,
            bn_refresh=self.bn_refresh,
            bn_samples=self.bn_samples,
            input_key=self.input_key,
        )
        fine_tuned = candidates.present()
        start = self._start or read_state(str(self.zero_shot))
        zero_shot = _shared(start, fine_tuned, self.zero_shot or "the weights at the start")
        columns: list[list[float]] = []
        names: list[str] = []
        for alpha in self._grid:
            state = interpolate(zero_shot, fine_tuned, alpha)
            metrics = candidates.metrics(state, mixed=0 < alpha < 1)
            names = self.monitor if isinstance(self.monitor, list) else _names(metrics, monitor)
            columns.append([pick(metrics, name) for name in names])
        self.chosen = choose_alpha(self._grid, columns, epsilon=self.epsilon, mode=mode)
        if self.chosen < 1:
            candidates.install(interpolate(zero_shot, fine_tuned, self.chosen), mixed=self.chosen > 0)
        folder = output_folder(trainer, self.dirpath, "wise_ft")
        self.path = str(folder / "wise_ft.ckpt")
        save_chosen(trainer, Path(self.path), monitor=monitor, score=None)
        self._report(trainer, folder, names, columns, candidates.evaluator.samples, monitor, mode)

    def _report(
        self,
        trainer: pl.Trainer,
        folder: Path,
        names: Sequence[str],
        columns: Sequence[Sequence[float]],
        samples: Sequence[int],
        monitor: str,
        mode: str,
    ) -> None:
        chosen = self._grid.index(self.chosen if self.chosen is not None else 1.0)
        inside, shifted = columns[chosen][0], _under_shift(columns[chosen])
        log_scalars(
            trainer,
            {"wise_ft/alpha": self._grid[chosen], "wise_ft/in_distribution": inside, "wise_ft/shifted": shifted},
        )
        rows = [[f"{alpha:.3g}", *(f"{v:.5g}" for v in row)] for alpha, row in zip(self._grid, columns, strict=True)]
        log_table(trainer, "wise_ft/curve", ["alpha", *names], rows)
        log_figure(
            trainer,
            "wise_ft/overview",
            draw_wise_ft(_curves(self._grid, names, columns, samples, mode), self._grid[chosen], monitor),
        )
        rank_zero_info(
            f"WiSE-FT: alpha {self._grid[chosen]:.3g}, {monitor} {inside:.4g} in distribution, {shifted:.4g} shifted; "
            f"fine-tuned {columns[-1][0]:.4g} and {_under_shift(columns[-1]):.4g}."
        )
        sign = 1 if mode == "max" else -1
        if sign * (columns[-1][0] - inside) > self.epsilon:
            rank_zero_warn(
                f"WiSEFTCallback: with one validation loader alpha is 0.5, and {monitor} is {inside:.4g} instead of "
                f"{columns[-1][0]:.4g} as fine-tuned. Give a second, shifted loader to choose alpha by."
            )
        if self._grid[chosen] == 1:
            rank_zero_warn(
                "WiSEFTCallback: the fine-tuned weights are the best of the curve and stay as they are.",
                category=NoEffectWarning,
            )
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            content = {"alpha": self._grid[chosen], "alphas": self._grid, "metrics": names, "values": columns}
            (folder / "wise_ft.json").write_text(json.dumps(content, indent=2))


def choose_alpha(
    alphas: Sequence[float], values: Sequence[Sequence[float]], *, epsilon: float, mode: Literal["max", "min"]
) -> float:
    """The alpha with the best mean metric under shift among those that are within ``epsilon`` of the best inside.

    Args:
        alphas: Where the curve was measured.
        values: At each alpha, the metric in distribution, then under each shift. With no shift, 0.5 is chosen.
        epsilon: What may be given up in distribution.
        mode: Whether larger or smaller is better. Ties go to the larger alpha.

    Raises:
        ValueError: If no value is finite.

    Example:
        >>> choose_alpha([0, 0.5, 1], [[0.7, 0.9], [0.895, 0.8], [0.9, 0.6]], epsilon=0.01, mode="max")
        0.5
    """
    sign = 1.0 if mode == "max" else -1.0
    usable = [i for i, row in enumerate(values) if all(math.isfinite(value) for value in row)]
    if not usable:
        raise ValueError("Expected finite metrics at some alpha, but none is. Is the metric defined on these loaders?")
    if len(values[0]) == 1:
        return min((alphas[i] for i in usable), key=lambda alpha: abs(alpha - 0.5))
    best = max(sign * values[i][0] for i in usable)
    # rounding of the subtraction must not shut out an alpha that lies on the limit
    near = [i for i in usable if sign * values[i][0] >= best - epsilon - 1e-12 * abs(best)]
    return alphas[max(near, key=lambda i: (sign * _under_shift(values[i]), alphas[i]))]


def _under_shift(row: Sequence[float]) -> float:
    """Mean over the shifted loaders; the only loader where there is one."""
    shifted = row[1:] or row
    return sum(shifted) / len(shifted)


def _names(metrics: Mapping[str, float], monitor: str) -> list[str]:
    """The names of a metric on all loaders."""
    found = [name for name in metrics if name.startswith(f"{monitor}/dataloader_idx_")]
    return sorted(found, key=lambda name: int(name.rpartition("_")[2])) or [monitor]


def _shared(start: Mapping[str, Tensor], fine_tuned: Mapping[str, Tensor], name: str) -> State:
    """The initial weights, with fine-tuned ones where they have no counterpart.

    Raises:
        ValueError: If no tensor has one.
    """
    alike = {key for key, tensor in fine_tuned.items() if key in start and start[key].shape == tensor.shape}
    if not alike:
        raise ValueError(
            f"Expected tensors of the fine-tuned model in {name}, but none of {sorted(start)[:3]} ... has a "
            f"counterpart among {sorted(fine_tuned)[:3]} ... of its shape. Is it a checkpoint of this architecture?"
        )
    kept = [key for key in fine_tuned if key not in alike]
    if kept:
        rank_zero_info(f"WiSE-FT: {kept} are not in {name} and stay fine-tuned.")
    return {k: start[k].to(tensor, copy=True) if k in alike else tensor.clone() for k, tensor in fine_tuned.items()}


def _curves(
    alphas: Sequence[float],
    names: Sequence[str],
    columns: Sequence[Sequence[float]],
    samples: Sequence[int],
    mode: str,
) -> list[Curve]:
    inside = [row[0] for row in columns]
    shares = mode == "max" and len(samples) == len(names) and all(0 <= v <= 1 for row in columns for v in row)
    curves = []
    for place in range(1, len(names)) if len(names) > 1 else [0]:
        shifted = [row[place] for row in columns]
        errors: list[tuple[float, float]] = []
        if shares:
            pairs = zip(inside, shifted, strict=True)
            errors = [(_half_width(a, samples[0]), _half_width(b, samples[place])) for a, b in pairs]
        curves.append(Curve(names[place], alphas, inside, shifted, errors))
    return curves


def _half_width(share: float, count: int) -> float:
    """Half of the 95 % interval of a share of ``count`` samples, by the normal approximation."""
    return 1.96 * math.sqrt(share * (1 - share) / count)
