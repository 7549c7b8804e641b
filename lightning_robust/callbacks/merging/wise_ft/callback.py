"""WiSEFTCallback: after fine-tuning, interpolate back towards the initial weights as far as that is more robust."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor
from typing_extensions import override

from lightning_robust.callbacks.averaging.callback import SWACallback
from lightning_robust.callbacks.candidates import Candidates, MixingCallback, require_last, save_chosen
from lightning_robust.callbacks.merging.greedy_soup.callback import GreedySoupCallback
from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve, choose_alpha
from lightning_robust.callbacks.merging.wise_ft.report import report_wise_ft
from lightning_robust.callbacks.merging.wise_ft.start import with_counterparts
from lightning_robust.functional.averaging import State, interpolate
from lightning_robust.functional.basins import cosine, share_start
from lightning_robust.functional.fresh import looks_untrained
from lightning_robust.functional.low_rank import mixable_start, refuse_trained_pairs
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.checkpoints import read_state
from lightning_robust.harness.closing import note_weights
from lightning_robust.harness.evaluate import pick
from lightning_robust.harness.folders import output_folder
from lightning_robust.harness.load_hook import EditWeights
from lightning_robust.harness.ranks import Guard, agreed
from lightning_robust.harness.trainers import NoEffectWarning, refuse_sharded


class WiSEFTCallback(MixingCallback):
    r"""Interpolate between the weights before and after fine-tuning and keep the most robust mixture.

    .. math:: \theta(\alpha) = (1 - \alpha)\,\theta_\text{zero-shot} + \alpha\,\theta_\text{fine-tuned}

    (`Wortsman et al. 2021 <https://arxiv.org/abs/2109.01903>`_). When training has ended, every validation loader of
    the Trainer is evaluated at every alpha. The first loader is in distribution, like the data of the fine-tuning; the
    others are shifted. The callback chooses the alpha with the best mean metric under shift whose in-distribution
    metric is within ``epsilon`` of the best. The module then holds the chosen weights, ``dirpath`` holds
    ``wise_ft.ckpt`` (which loads in Lightning) and ``wise_ft.json``, and ``ckpt_path="best"`` means the chosen weights
    where a ModelCheckpoint monitors the same metric. With one loader nothing measures a shift: a warning at the first
    validation says so, the fine-tuned weights stay, and the curve is all that is written.

    At alpha 0 and 1 the weights are the endpoints bit for bit; between them, BatchNorm statistics are refreshed from
    the training data. Tensors that the zero-shot weights lack or have in another shape (a new head) stay fine-tuned
    at every alpha. Of low-rank adapters (LoRA) the product is interpolated where it begins at zero, as it does in peft;
    where both factors of an adapter begin elsewhere, the callback refuses.

    Where a module has lazy layers, the weights at the start are those after its first forward pass.

    Logged at the end: ``wise_ft/alpha``, ``wise_ft/in_distribution``, ``wise_ft/shifted``, a table, and the curve. A
    warning at the start says if the weights to go back to look like a fresh initialisation. If it fails, a warning
    says why and the weights stay as trained.

    Cost: one validation and one BatchNorm pass for each alpha; one copy of the weights in memory during training (and
    in full checkpoints, from which it resumes), three at the end.

    Args:
        zero_shot: File with the weights to go back to; None takes those at the start of the fit.
        alphas: Number of values, evenly from 0 to 1, or a list of values. 0, 0.5 and 1 are always among them.
        monitor: Metric to judge by, without the ``/dataloader_idx_0`` that Lightning appends; or a list of names, the
            first in distribution, the others shifted. None takes that of a ModelCheckpoint or EarlyStopping callback.
        mode: ``"max"`` or ``"min"``; None takes that callback's.
        epsilon: How much in-distribution performance may be given up, in units of the metric.
        bn_refresh: Recompute BatchNorm statistics of mixtures.
        bn_samples: Training samples on each rank to recompute them from, rounded up to whole batches; all if None.
        input_key: Which part of a batch goes into ``forward`` for that: position or name; a list for several
            arguments. None infers it from the signature of ``forward``.
        dirpath: Folder for the files; None is ``wise_ft`` in the run's own folder.
        on_failure: ``"warn"`` and leave the weights as trained, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range, and before training for a file that is missing or cannot be read and
            for adapters that cannot be interpolated.
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
        input_key: int | str | list[int | str] | None = None,
        dirpath: str | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        grid = alphas if isinstance(alphas, list) else [i / max(alphas - 1, 1) for i in range(alphas)]
        if not grid or not all(0 <= alpha <= 1 for alpha in grid):
            raise ValueError(f"Expected `alphas` to be a number from 1, or values in [0, 1], but got {alphas}.")
        if epsilon < 0:
            raise ValueError(f"Expected `epsilon` to be at least 0, but got {epsilon}.")
        if isinstance(monitor, list) and not monitor:
            raise ValueError("Expected at least one metric in `monitor`, but the list is empty.")
        self.zero_shot, self.alphas = zero_shot, alphas
        self.monitor, self.mode, self.epsilon = monitor, mode, epsilon
        self.bn_refresh, self.bn_samples, self.input_key = bn_refresh, bn_samples, input_key
        self.dirpath, self.on_failure = dirpath, on_failure
        self.chosen: float | None = None
        self.path = ""
        self._grid = sorted({0.0, 0.5, 1.0, *grid})
        self._start: State = {}
        self._guard = Guard("WiSEFTCallback", on_failure)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before any training is spent on it."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_sharded(trainer, "WiSEFTCallback")
        require_last(trainer, self, SWACallback | GreedySoupCallback)
        self.judged_by(trainer)
        self._start, self.chosen, self.path = {}, None, ""
        self._guard.reset()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say at the sanity check that one loader measures no shift."""
        if trainer.state.fn == "fit" and len(trainer.num_val_batches) == 1 and not isinstance(self.monitor, list):
            self._guard.warn(
                "one validation loader measures no shift, so that the fine-tuned weights will stay and only the curve "
                "is drawn. To choose a mixture, give the Trainer a second validation loader with shifted data.",
                NoEffectWarning,
                key="one loader",
            )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Interpolate, choose an alpha, and leave its weights in the module."""
        self._guard.attempt(trainer, lambda: self._interpolate(trainer, pl_module), "the weights stay as trained")

    @override
    def edit_weights(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any], edit: EditWeights) -> None:
        """The module's hook for loading reaches the weights that this callback keeps too."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved and saved["start"]:
            saved["start"] = edit(saved["start"])

    @override
    def state_dict(self) -> dict[str, Any]:
        """The weights that fine-tuning began from."""
        return {"start": dict(self._start)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the weights that the interrupted run began from, not those it was interrupted with."""
        self._start = dict(state_dict["start"])

    @override
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights that fine-tuning begins from, and refuse those that it cannot go back to."""
        if self.zero_shot is None and not self._start:
            self._start = state_on_cpu(pl_module)
            self._warn_of_untrained(pl_module)
        start = agreed(trainer, lambda: self._zero_shot_state(pl_module.state_dict()), "Reading the zero-shot weights")
        refuse_trained_pairs(pl_module, start)
        if not share_start(start, pl_module.state_dict()):
            self._guard.warn(
                f"the weights of {self.zero_shot} are no start of this fit (cosine "
                f"{cosine(start, pl_module.state_dict()):.2f}), and mixtures of models from different starts are worse "
                "than both. Load them before the fit.",
                key="another start",
            )

    def _warn_of_untrained(self, pl_module: pl.LightningModule) -> None:
        if looks_untrained(pl_module):
            self._guard.warn(
                "the weights to go back to look like a fresh initialisation, with which no mixture is better. Load a "
                "trained model before the fit, or name its file as `zero_shot`; else switch `wise_ft` off.",
                NoEffectWarning,
                key="untrained",
            )

    @override
    def judged_by(self, trainer: pl.Trainer) -> tuple[str, Literal["max", "min"]]:
        """The metric without the loader that a ModelCheckpoint has to name: all loaders count here."""
        name, mode = super().judged_by(trainer)
        return (name if isinstance(self.monitor, list) else re.sub(r"/dataloader_idx_\d+$", "", name)), mode

    def _zero_shot_state(self, fine_tuned: Mapping[str, Tensor]) -> State:
        if self.zero_shot is None:
            return with_counterparts(self._start, fine_tuned, "the weights at the start")
        return with_counterparts(self._start or read_state(self.zero_shot), fine_tuned, self.zero_shot)

    def _interpolate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor, mode = self.judged_by(trainer)
        candidates = Candidates(
            trainer, pl_module, monitor, mode, self.bn_refresh, self.bn_samples, self.input_key, self._guard
        )
        fine_tuned = candidates.present()
        zero_shot = agreed(trainer, lambda: self._zero_shot_state(fine_tuned), "Reading the zero-shot weights")
        candidates.mixing([zero_shot, fine_tuned])
        curve = self._measure(candidates, zero_shot, fine_tuned)
        self.chosen = choose_alpha(self._grid, curve.values, epsilon=self.epsilon, mode=mode)
        if self.chosen < 1:
            candidates.install(_mixture(zero_shot, fine_tuned, self.chosen), mixed=self.chosen > 0)
            note_weights(trainer, f"WiSE-FT's mixture at alpha {self.chosen:.3g}")
        folder = output_folder(trainer, self.dirpath, "wise_ft")
        if self.chosen < 1 or len(curve.names) > 1:
            path = folder / "wise_ft.ckpt"
            save = functools.partial(save_chosen, trainer, path, monitor=curve.names[0], score=None)
            self.path = self._guard.attempt(trainer, save, "the module holds the chosen weights, but no file does", "")
        start = self._name_start(candidates, zero_shot)
        report = functools.partial(report_wise_ft, curve, self.chosen, candidates, folder, start)
        self._guard.attempt(trainer, report, "the weights are chosen, but not all is shown")

    def _name_start(self, candidates: Candidates, zero_shot: State) -> str:
        """What the weights at alpha 0 are."""
        if self.zero_shot is not None:
            return "zero-shot model"
        with candidates.holding(zero_shot, mixed=False):
            return "initialisation" if looks_untrained(candidates.module) else "start of the fit"

    def _measure(self, candidates: Candidates, zero_shot: State, fine_tuned: State) -> AlphaCurve:
        """The metric on every loader at every alpha."""
        names: list[str] = []
        values = []
        with candidates.watched("WiSE-FT", len(self._grid)):
            for alpha in self._grid:
                metrics = candidates.metrics(_mixture(zero_shot, fine_tuned, alpha), mixed=0 < alpha < 1)
                names = self.monitor if isinstance(self.monitor, list) else _on_all_loaders(metrics, candidates.monitor)
                values.append([pick(metrics, name) for name in names])
        return AlphaCurve(self._grid, names, values, candidates.evaluator.samples)


def _mixture(zero_shot: State, fine_tuned: State, alpha: float) -> State:
    """The interpolation, of adapters that of their products; the endpoints bit for bit."""
    return interpolate(zero_shot if alpha == 0 else mixable_start(zero_shot, fine_tuned), fine_tuned, alpha)


def _on_all_loaders(metrics: Mapping[str, float], monitor: str) -> list[str]:
    """The names of a metric on each loader, in their order; its plain name where there is one loader."""
    names = [name for name in metrics if name.startswith(f"{monitor}/dataloader_idx_")]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2])) or [monitor]
