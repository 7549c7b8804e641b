"""LayerCriticalityCallback: after training, which layers may be put back to where they began, and which may not.

Hooks, state and logging only; cells are measured in ``criticality_map.py``, drawn in ``criticality_report.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_robust.callbacks.adversarial.objective import AttackInputs
from lightning_robust.callbacks.averaging.callback import SWACallback
from lightning_robust.callbacks.candidates import judged_by, output_folder, require_last, save_chosen
from lightning_robust.callbacks.conditions import ATTACK, CLEAN, Condition, attacked, named_perturbations, preprocessed
from lightning_robust.callbacks.layer_criticality.draws import Draws
from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap, CriticalityMapper
from lightning_robust.callbacks.layer_criticality.report import content, draw, scalars, summary, table
from lightning_robust.callbacks.layer_criticality.rewind import Rewound, rewind
from lightning_robust.callbacks.layer_criticality.trajectory import Trajectory
from lightning_robust.callbacks.merging.greedy_soup.callback import GreedySoupCallback
from lightning_robust.callbacks.merging.wise_ft.callback import WiSEFTCallback
from lightning_robust.functional.criticality import require_reset
from lightning_robust.harness.logging import log_figure, log_scalars, log_table
from lightning_robust.harness.schedule import parse_fraction
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run, refuse_sharded
from lightning_robust.layers import Layer, find_layers


class LayerCriticalityCallback(pl.Callback):
    r"""Put one layer at a time back to its initial value, to a checkpoint, or to a fresh draw, and see what that costs.

    After the fit, the network :math:`\theta_T` is evaluated with the weights of one layer :math:`d` replaced, without
    any further training: by :math:`\theta_0^d` and :math:`\theta_\tau^d` (re-initialisation), and by independent draws
    from the layer's initial distribution (re-randomisation). Layers that do not mind are *ambient*, the others
    *critical* (`Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022
    <https://arxiv.org/abs/1902.01996>`_). The paper gives no number for that; here a layer is ambient if the 95 %
    interval of

    .. math:: \frac{m(\theta_T \text{ with } \theta_0^d) - m(\theta_0)}{m(\theta_T) - m(\theta_0)}

    the share of what training gained in the metric :math:`m` that is kept, is wholly at least ``threshold``, critical
    if it is wholly below, else undecided. Ambient layers are candidates for freezing, for coarse quantisation, for
    leaving out of averages; ``rewind`` puts them back for good. The interval is over the batches of the held-out
    loader; it is known for metrics that are means over samples, in a single process.

    Weights are analysed as training leaves them. SWACallback, which comes later by default, exchanges them afterwards;
    put this callback behind it in ``trainer.callbacks`` to analyse the average. BatchNorm is a layer with its affine
    parameters and statistics.

    Logged at the end: ``criticality/trained``, ``criticality/ambient`` and ``criticality/critical`` (counts),
    ``criticality/kept/<layer>``; for conditions ``criticality/<condition>/...``; a table, one figure, and
    ``criticality.json`` in ``dirpath``. Training is bit-identical with and without it. If it fails, a warning says why.

    Cost: in memory, on the CPU, the weights at the start and at each checkpoint, as far as they differ (in full
    checkpoints too); at the end one copy of a layer, ``cache_mb`` for batches and activations, and the activations of
    one batch. In time, layers times columns passes over the validation loader that begin at the layer, one in full for
    each column; equal weights are evaluated once. Attacked passes begin at the input. Resumes with what it kept.

    Args:
        monitor: Metric to judge by; None takes that of a ModelCheckpoint or EarlyStopping callback.
        mode: ``"max"`` or ``"min"``; None likewise.
        layers: Regular expressions on module paths, each a group with all that is inside, or ``name: expression``.
            None takes every module that has parameters of its own.
        checkpoints: When to keep weights: epochs (3), ``"500 steps"``, shares of the run (0.5); None is after 1, 2, 4,
            8, ... epochs.
        draws: How many random draws.
        randomise: ``"permute"`` the elements of the initial tensors, which has exactly their marginal distribution, or
            ``"reset_parameters"`` of each module.
        model_factory: Makes the network anew, seeded beforehand; takes the place of ``randomise``.
        under: Also measure under ``"fgsm"`` or perturbations of ``lightning_robust.deployment.pixels.catalogue``
            (``"jpeg_90"``, a family, or the beginning of a name); one or several. FGSM attacks each cell afresh.
        eps: Radius of the attack, in pixels in [0, 1].
        threshold: Share that an ambient layer keeps.
        rewind: Put all ambient layers back at once and refresh BatchNorm. If the metric holds, the module keeps that
            and ``rewound.ckpt`` is saved; otherwise it is left as trained.
        tolerance: Share of what training gained that this may cost.
        bn_refresh: Recompute BatchNorm statistics in every cell, and as trained, from the training data.
        bn_samples: From about so many training samples; all if None.
        value_range: Smallest and largest value that the metric has on one sample, as [0, 1] for accuracy. Cells are
            then left as soon as the rest of the data cannot bring them over the threshold; these show the mean so far.
        cache_mb: Memory for batches and activations, in MiB; what does not fit is computed again.
        dtype: Of the weights kept after the start.
        files: Weights from files instead of this fit: the first is the start, the others checkpoints; or one full
            checkpoint of a run with this callback. Then ``trainer.validate`` analyses too.
        input_key: Which part of a batch holds the inputs: position or name; a list for several.
        mean: Mean that pixels were normalised with; None takes the data module's, else 0.
        std: Standard deviation likewise, else 1.
        seed: Of the draws.
        dirpath: Folder for the files; None is ``layer_criticality`` in the Trainer's log folder.
        on_failure: ``"warn"``, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range; at the start of a fit for names that match no layer, files that cannot
            be read, and layers that cannot be drawn as asked.
        MisconfigurationException: Without a metric to judge by, under strategies in which no rank has the whole model,
            or with ``rewind`` if a callback that comes later would replace the weights.

    Example:
        >>> criticality = LayerCriticalityCallback(monitor="val/acc", mode="max", under="jpeg")
        >>> trainer = pl.Trainer(callbacks=[criticality], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        *,
        layers: list[str] | dict[str, str] | None = None,
        checkpoints: list[float | str] | None = None,
        draws: int = 3,
        randomise: Literal["permute", "reset_parameters"] = "permute",
        model_factory: Callable[[], nn.Module] | None = None,
        under: str | list[str] | None = None,
        eps: float | str = "8/255",
        threshold: float = 0.9,
        rewind: bool = False,
        tolerance: float = 0.02,
        bn_refresh: bool = False,
        bn_samples: int | None = None,
        value_range: list[float] | None = None,
        cache_mb: int = 1024,
        dtype: Literal["same", "bfloat16"] = "same",
        files: list[str] | None = None,
        input_key: int | str | list[int | str] = 0,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        seed: int = 0,
        dirpath: str | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        if draws < 1 or cache_mb < 0:
            raise ValueError(
                f"Expected `draws` of at least 1 and `cache_mb` of at least 0, got {draws} and {cache_mb}."
            )
        if not (0 < threshold <= 1 and 0 <= tolerance < 1):
            raise ValueError(
                f"Expected `threshold` in (0, 1] and `tolerance` in [0, 1), but got {threshold} and {tolerance}."
            )
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise ValueError(f"Expected `value_range` as [smallest, largest], but got {value_range}.")
        if files is not None and not files:
            raise ValueError("Expected at least one path or glob in `files`, but the list is empty.")
        self.monitor, self.mode, self.layers, self.checkpoints = monitor, mode, layers, checkpoints
        self.draws, self.randomise, self.model_factory = draws, randomise, model_factory
        self.under, self.eps, self.threshold = under, eps, threshold
        self.rewind, self.tolerance = rewind, tolerance
        self.bn_refresh, self.bn_samples, self.value_range = bn_refresh, bn_samples, value_range
        self.cache_mb, self.dtype, self.files, self.input_key = cache_mb, dtype, files, input_key
        self.mean, self.std, self.seed, self.dirpath, self.on_failure = mean, std, seed, dirpath, on_failure
        self._keys = input_key if isinstance(input_key, list) else [input_key]
        self._under = [under] if isinstance(under, str) else list(under or [])
        self._entries = named_perturbations([name for name in self._under if name != ATTACK])
        self._eps = parse_fraction(eps)
        self._trajectory = self._planned()
        self.maps: list[CriticalityMap] = []
        self.rewound: Rewound | None = None
        self.path = ""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and begin anew."""
        refuse_sharded(trainer, "LayerCriticalityCallback")
        if stage != "fit":
            return
        judged_by(trainer, self.monitor, self.mode)
        if self.rewind:
            require_last(trainer, self, SWACallback | GreedySoupCallback | WiSEFTCallback)
        self._trajectory, self.maps, self.rewound, self.path = self._planned(), [], None, ""

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights that training begins from, and find the layers before any training is spent."""
        self._find(pl_module)
        if self.files is None:
            self._trajectory.start(pl_module)
        else:
            self._trajectory.load_files(self.files, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the weights, if it is time."""
        if self.files is None:
            self._trajectory.pass_by(trainer, pl_module, batch_idx)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure."""
        self._guarded(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a lone ``trainer.validate()``, measure with the weights in files."""
        if trainer.state.fn == "validate" and self.files is not None:
            self._trajectory.load_files(self.files, pl_module)
            self._guarded(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The weights kept so far."""
        return self._trajectory.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the start of the interrupted run."""
        self._trajectory.load_state_dict(state_dict)

    def analyze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[CriticalityMap]:
        """Measure the maps of the weights that the module holds, log them, and rewind if asked; within fit or validate.

        Returns:
            A map for each condition, clean batches first.

        Raises:
            ValueError: If there is no held-out loader, or it does not log the metric.
        """
        monitor, mode = judged_by(trainer, self.monitor, self.mode)
        layers, states = self._find(pl_module), self._trajectory.states
        mapper = CriticalityMapper(
            trainer,
            pl_module,
            layers,
            self._trajectory.labels,
            states,
            Draws(pl_module, layers, states[0], self.randomise, self.model_factory, self.draws, self.seed),
            monitor=monitor,
            mode=mode,
            threshold=self.threshold,
            cache_bytes=self.cache_mb * 2**20,
            value_range=None if self.value_range is None else (self.value_range[0], self.value_range[1]),
            bn_refresh=self.bn_refresh,
            bn_samples=self.bn_samples,
            input_key=self.input_key,
        )
        self.maps = [mapper.measure(CLEAN)]
        conditions = self._conditions(trainer, pl_module)
        for condition in conditions:
            try:
                self.maps.append(mapper.measure(condition))
            except Exception as error:
                self._fail(error, f"nothing was measured under {condition.name}")
        self._report(trainer)
        if self.rewind:
            self._rewind(trainer, pl_module, conditions)
        return self.maps

    def _planned(self) -> Trajectory:
        return Trajectory(self.checkpoints, None if self.dtype == "same" else torch.bfloat16)

    def _find(self, pl_module: pl.LightningModule) -> list[Layer]:
        layers = find_layers(pl_module, self.layers)
        if self.randomise == "reset_parameters" and self.model_factory is None:
            for path in {name.rpartition(".")[0] for layer in layers for name in layer.tensors}:
                require_reset(pl_module.get_submodule(path), path)
        return layers

    def _conditions(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Condition]:
        found = [preprocessed(trainer, entry, self._keys[0], self.mean, self.std) for entry in self._entries]
        return [*found, self._attack(trainer, pl_module)] if ATTACK in self._under else found

    def _attack(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Condition:
        return attacked(trainer, pl_module, AttackInputs(self._keys, self.mean, self.std, "pixels"), self._eps)

    def _guarded(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            self.analyze(trainer, pl_module)
        except Exception as error:
            self._fail(error, "the weights stay as trained")

    def _fail(self, error: Exception, consequence: str) -> None:
        if self.on_failure == "raise":
            raise error
        rank_zero_warn(f"LayerCriticalityCallback: {consequence}. {type(error).__name__}: {error}")

    def _report(self, trainer: pl.Trainer) -> None:
        for found in self.maps:
            log_scalars(trainer, scalars(found))
            log_table(trainer, f"criticality/{found.condition}", *table(found))
            rank_zero_info(f"Layer criticality: {summary(found)}")
        log_figure(trainer, "criticality/overview", draw(self.maps))
        if len(self.maps[0].named("unchanged")) == len(self.maps[0].rows):
            rank_zero_warn(
                "LayerCriticalityCallback: training changed no layer, so there is nothing to put back.",
                category=NoEffectWarning,
            )
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        folder = output_folder(trainer, self.dirpath, "layer_criticality")
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            result = {"maps": [content(found) for found in self.maps]}
            if self.rewound is not None:
                result["rewound"] = [vars(self.rewound)]
            (folder / "criticality.json").write_text(json.dumps(result, indent=2))

    def _rewind(self, trainer: pl.Trainer, pl_module: pl.LightningModule, conditions: list[Condition]) -> None:
        clean = self.maps[0]
        layers = [layer for layer in clean.layers if layer.name in clean.named("ambient")]
        if not layers:
            rank_zero_warn(
                f"LayerCriticalityCallback: no layer keeps {self.threshold:.0%} put back to the start, so none is "
                "rewound.",
                category=NoEffectWarning,
            )
            return
        if ATTACK not in self._under:
            conditions = [*conditions, self._attack(trainer, pl_module)]
        self.rewound = rewind(
            trainer,
            pl_module,
            layers,
            self._trajectory.states[0],
            conditions,
            monitor=clean.monitor,
            untrained=clean.whole.cells[0].value,
            tolerance=self.tolerance,
            bn_samples=self.bn_samples,
            input_key=self.input_key,
        )
        self._report_rewound(trainer, self.rewound)

    def _report_rewound(self, trainer: pl.Trainer, rewound: Rewound) -> None:
        monitor = self.maps[0].monitor
        if rewound.kept:
            path = output_folder(trainer, self.dirpath, "layer_criticality") / "rewound.ckpt"
            save_chosen(trainer, path, monitor=monitor, score=rewound.after[CLEAN.name])
            self.path = str(path)
        rows = [
            [name, f"{value:.5g}", f"{rewound.after.get(name, float('nan')):.5g}"]
            for name, value in rewound.before.items()
        ]
        log_table(trainer, "criticality/rewind", ["", "as trained", "rewound"], rows)
        log_scalars(trainer, {"criticality/rewound": float(len(rewound.layers) if rewound.kept else 0)})
        numbers = ", ".join(f"{name} {before} -> {after}" for name, before, after in rows)
        rank_zero_info(
            f"Rewinding {', '.join(rewound.layers)} keeps {rewound.share:.1%} of what training gained in {monitor} "
            f"({numbers}): {'the module holds it' if rewound.kept else 'the weights stay as trained'}."
        )
        self._write(trainer)
