"""LayerCriticalityCallback: after training, which layers may go back to where they began, and which may not."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.averaging.callback import SWACallback
from lightning_robust.callbacks.candidates import require_last, save_chosen
from lightning_robust.callbacks.conditions import ATTACK, CLEAN, Condition
from lightning_robust.callbacks.diagnostics import (
    DiagnosticCallback,
    NamedConditions,
    Report,
    check_at_least,
    show,
)
from lightning_robust.callbacks.judging import JudgingCallback
from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap, CriticalityMapper
from lightning_robust.callbacks.layer_criticality.readings import Criterion
from lightning_robust.callbacks.layer_criticality.report import criticality_json, criticality_report, rewind_report
from lightning_robust.callbacks.layer_criticality.rewind import Rewound, rewind
from lightning_robust.callbacks.layer_criticality.trajectory import Trajectory
from lightning_robust.callbacks.merging.greedy_soup.callback import GreedySoupCallback
from lightning_robust.callbacks.merging.wise_ft.callback import WiSEFTCallback
from lightning_robust.callbacks.module_loss import require_own_loss
from lightning_robust.harness.closing import note_weights
from lightning_robust.harness.folders import output_folder
from lightning_robust.harness.inputs import as_keys
from lightning_robust.harness.load_hook import EditWeights, StartKeeper
from lightning_robust.harness.logging import log_files
from lightning_robust.harness.ranks import Postponed
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run
from lightning_robust.json_values import jsonable
from lightning_robust.layers import find_layers

_FOLDER = "layer_criticality"
_FILE = "criticality.json"
_TOLERANCE = 0.02


class LayerCriticalityCallback(DiagnosticCallback, JudgingCallback, StartKeeper):
    r"""Put one layer at a time back to its initial value, to a checkpoint, or to a fresh draw, and see what that costs.

    After the fit, the network :math:`\theta_T` is evaluated with the weights of one layer :math:`d` replaced, without
    any further training: by :math:`\theta_0^d` and :math:`\theta_\tau^d` (re-initialisation), and by independent draws
    from the layer's initial distribution (re-randomisation). Layers that do not mind are *ambient*, the others
    *critical* (`Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022
    <https://arxiv.org/abs/1902.01996>`_). The paper gives no number for that; here a layer is ambient if the 95 %
    interval of

    .. math:: \frac{m(\theta_T \text{ with } \theta_0^d) - m(\theta_0)}{m(\theta_T) - m(\theta_0)}

    the share that remains of what training gained in the metric :math:`m`, lies wholly at ``threshold`` or above,
    critical if it lies wholly below, and undecided otherwise. Ambient layers are candidates for freezing, for coarse
    quantisation, for leaving out of averages; ``rewind`` puts them back for good. The interval is over the batches of
    the held-out loader; it is known for metrics that are means over samples, in a single process.

    A fresh draw is the initial tensor with its elements permuted, which has exactly its marginal distribution. The
    weights are those that training ends with. SWACallback, which comes later by default, exchanges them afterwards; put
    this callback behind it in ``trainer.callbacks`` to analyse the average. BatchNorm is a layer with its affine
    parameters and statistics.

    Logged at the end: ``criticality/trained``, ``criticality/ambient`` and ``criticality/critical`` (counts),
    ``criticality/kept/<layer>``; for conditions ``criticality/<condition>/...``; a table, one figure, and
    ``criticality.json`` in ``dirpath``. Training is bit-identical with and without it. If it fails, a warning says why.

    Cost: in memory, on the CPU and in full checkpoints, the weights at the start and at each checkpoint, unchanged
    tensors once. In time, one pass over the validation loader for each layer and column; equal weights are evaluated
    once, and with ``value_range`` a pass ends as soon as the layer is settled. A resumed run goes on with the weights
    it has.

    Args:
        monitor: Metric to judge by; None takes that of a ModelCheckpoint or EarlyStopping callback.
        mode: ``"max"`` or ``"min"``; None takes that of the same callback.
        layers: Regular expressions on module paths, each a group with all that is inside, or ``name: expression``.
            None takes every module that has parameters of its own.
        checkpoints: When to keep weights: epochs (3), ``"500 steps"``, shares of the run (0.5); None is after 1, 2, 4,
            8, ... epochs. Or weights files (.ckpt, .pt, .pth, .bin, .safetensors) of an earlier run: the first is the
            start; or one full checkpoint of a run with this callback. Then ``trainer.validate`` analyses too.
        draws: How many random draws.
        under: Also measure under ``"fgsm"``, perturbations of ``lightning_robust.deployment.pixels.catalogue``
            (``"jpeg_90"``, a family, or the beginning of a name) or corruptions that a camera meets (``"fog@5"``,
            without a number of the middle severity, 3); one or several. FGSM attacks each cell afresh.
        eps: Radius of the attack, in pixels in [0, 1]; in their own units for vectors without ``mean`` and ``std``.
        threshold: Share of training's gain that an ambient layer keeps.
        rewind: Put all ambient layers back at once and refresh BatchNorm. If the metric holds, the module keeps that
            and ``rewound.ckpt`` is saved; otherwise it is left as trained. A number is the share of training's gain
            that this may cost; ``True`` is 0.02.
        value_range: Smallest and largest value that the metric has on one sample, as [0, 1] for accuracy. Cells are
            then left as soon as the rest of the data cannot bring them over the threshold; these show the mean so far.
        input_key: Which part of a batch holds the inputs: position or name; a list for several. None
            infers it from the signature of ``forward``.
        mean: Mean that pixels were normalised with; None takes the data module's, else 0.
        std: Standard deviation that pixels were normalised with; None takes the data module's, else 1.
        dirpath: Folder for the files; None is ``layer_criticality`` in the run's own folder.
        on_failure: ``"warn"``, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range; at the start of a fit for names that match no layer and files that
            cannot be read.
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
        under: str | list[str] | None = None,
        eps: float | str = "8/255",
        threshold: float = 0.9,
        rewind: bool | float = False,
        value_range: list[float] | None = None,
        input_key: int | str | list[int | str] | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        dirpath: str | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__(on_failure)
        check_at_least(1, draws=draws)
        if not (0 < threshold <= 1 and (rewind is True or 0 <= rewind < 1)):
            raise ValueError(
                "Expected `threshold` in (0, 1] and `rewind` to be True, False or a share below 1, but got "
                f"{threshold} and {rewind}."
            )
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise ValueError(f"Expected `value_range` as [smallest, largest], but got {value_range}.")
        self.monitor, self.mode, self.layers, self.checkpoints = monitor, mode, layers, checkpoints
        self.draws, self.under, self.eps, self.threshold = draws, under, eps, threshold
        self.rewind, self.value_range, self.input_key = rewind, value_range, input_key
        self.mean, self.std, self.dirpath = mean, std, dirpath
        keys = as_keys(input_key)
        self._conditions = NamedConditions(under, AttackInputs(keys, mean, std, "pictures"), eps)
        self._trajectory, self._kept = Trajectory(checkpoints), Postponed()
        self.maps: list[CriticalityMap] = []
        self.rewound: Rewound | None = None
        self.path = ""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and begin anew."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.judged_by(trainer)
        if self.rewind is not False:
            require_last(trainer, self, SWACallback | GreedySoupCallback | WiSEFTCallback)
        self._trajectory, self.maps, self.rewound, self.path = Trajectory(self.checkpoints), [], None, ""
        self._kept = Postponed()

    @override
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights that training begins from, and find the layers before any training is spent."""
        self._conditions.require_losses(pl_module)
        if self.rewind is not False:
            require_own_loss(pl_module)
        find_layers(pl_module, self.layers)
        self._trajectory.start(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the weights, if it is time."""
        self._kept.attempt(functools.partial(self._trajectory.visit, trainer, pl_module, batch_idx))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure."""
        self.guard.attempt(trainer, lambda: self.analyze(trainer, pl_module), "the weights stay as trained")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after a lone ``trainer.validate()``, if there are files to take weights from."""
        if trainer.state.fn == "validate" and self._trajectory.files:
            self._trajectory.start(pl_module)
            self.on_train_end(trainer, pl_module)

    @override
    def edit_weights(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any], edit: EditWeights) -> None:
        """The module's hook for loading reaches the weights that this callback keeps too."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved:
            saved["states"] = [edit(state) for state in saved["states"]]

    @override
    def state_dict(self) -> dict[str, Any]:
        """The weights of the trajectory so far."""
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
        self._kept.check()
        span = None if self.value_range is None else (self.value_range[0], self.value_range[1])
        criterion = Criterion(*self.judged_by(trainer), self.threshold, span)
        layers, states = find_layers(pl_module, self.layers), self._trajectory.states
        mapper = CriticalityMapper(trainer, pl_module, layers, self._trajectory.labels, states, self.draws, criterion)
        self.maps = [mapper.measure(CLEAN)]
        # an attack is the slowest condition
        conditions = sorted(self._conditions.build(trainer, pl_module), key=lambda condition: condition.name == ATTACK)
        for condition in conditions:
            measure = functools.partial(mapper.measure, condition)
            result = self.guard.attempt(trainer, measure, f"nothing was measured under {condition.name}")
            self.maps += [] if result is None else [result]
        self._publish(trainer, pl_module, lambda: criticality_report(self.maps))
        if len(self.maps[0].named("unchanged")) == len(layers):
            self.guard.warn("training changed no layer, so there is nothing to put back.", NoEffectWarning)
        if self.rewind is not False:
            self._rewind(trainer, pl_module, conditions)
        return self.maps

    def _rewind(self, trainer: pl.Trainer, pl_module: pl.LightningModule, conditions: list[Condition]) -> None:
        clean = self.maps[0]
        layers = [layer for layer in clean.layers if layer.name in clean.named("ambient")]
        if not layers:
            self.guard.warn(
                f"no layer keeps {self.threshold:.0%} put back to the start, so none is rewound.", NoEffectWarning
            )
            return
        if ATTACK not in self._conditions.names:
            conditions = [*conditions, self._conditions.attack(trainer, pl_module)]
        monitor = clean.criterion.monitor
        self.rewound = rewind(
            trainer,
            pl_module,
            layers,
            self._trajectory.states[0],
            conditions,
            monitor=monitor,
            mode=clean.criterion.mode,
            untrained=clean.whole.cells[0].value,
            tolerance=_TOLERANCE if self.rewind is True else float(self.rewind),
            input_key=self.input_key,
        )
        if self.rewound.kept:
            note_weights(trainer, f"rewound weights ({', '.join(self.rewound.layers)} as at the start)")
            path = output_folder(trainer, self.dirpath, _FOLDER, _FILE) / "rewound.ckpt"
            after = self.rewound.after[CLEAN.name]
            save = functools.partial(save_chosen, trainer, path, monitor=monitor, score=after)
            self.path = self.guard.attempt(trainer, save, "the module holds the rewound layers, but no file does", "")
        self._publish(trainer, pl_module, functools.partial(rewind_report, self.rewound, monitor))

    def _publish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Callable[[], Report]) -> None:
        """Write and log what was measured; what fails there takes nothing from the weights."""
        self.guard.attempt(trainer, lambda: self._write(trainer), "criticality.json is not written", once=True)
        log = functools.partial(self._show, trainer, pl_module, report)
        self.guard.attempt(trainer, log, "not all is shown", once=True)

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Callable[[], Report]) -> None:
        show(trainer, report(), step=(_FOLDER, pl_module))

    def _write(self, trainer: pl.Trainer) -> None:
        folder = output_folder(trainer, self.dirpath, _FOLDER, _FILE)
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            content = {"maps": [criticality_json(result) for result in self.maps]}
            if self.rewound is not None:
                content["rewound"] = [jsonable(vars(self.rewound))]
            (folder / _FILE).write_text(json.dumps(content, indent=2, allow_nan=False))
            log_files(trainer, folder)
