"""LazyTrainingCallback: how far training leaves its initialisation, beside how easily one gradient step fools it."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.diagnostics import InputDiagnostic, Report, check_at_least, show
from lightning_robust.callbacks.lazy_training.figure import Measurement
from lightning_robust.callbacks.lazy_training.measure import Laziness, LazinessSettings, measure_laziness, weights_of
from lightning_robust.callbacks.lazy_training.probe import Probe
from lightning_robust.callbacks.lazy_training.report import describe_danger, describe_laziness, lazy_report
from lightning_robust.functional.averaging import State
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.closing import note_step, warn
from lightning_robust.harness.inputs import as_keys
from lightning_robust.harness.logging import add_layout
from lightning_robust.harness.ranks import RankError, describe_error
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run

_CHARTS = {
    "laziness": ["lazy/movement$", "lazy/linearization_gap", "lazy/sign_changes$", "lazy/kernel_alignment"],
    "fooled by one step": ["lazy/single_step.*", "lazy/fgsm.*"],
    "movement of each layer": ["lazy/movement/.*"],
}


class LazyTrainingCallback(InputDiagnostic):
    r"""See whether training stays close to its initialisation, and whether one gradient step is enough to fool it.

    Wide networks can learn while their weights hardly move; they then behave like the model linearised at its start,
    which is called lazy training. `Wang, Ullah, Mianjy and Arora (NeurIPS 2022)
    <https://arxiv.org/abs/2207.00411>`_ prove for two-layer ReLU networks that such networks, though they generalise,
    are fooled by a single step of gradient ascent of length :math:`O(\|x\|_2 / \sqrt d)` on an input of :math:`d`
    values. This callback measures both sides after every epoch. It is a diagnostic, not a verdict: robustness does not
    grow steadily as training gets less lazy, and the theorem is about two layers.

    Laziness, of all weights and for each layer with parameters of its own:

    - ``lazy/movement``: :math:`\|W - W_0\| / \|W_0\|`;
    - ``lazy/neuron_movement``: the largest movement of a neuron's weights in units of :math:`1/\sqrt{\text{width}}`,
      the theorem's constant where a layer is parametrised as there;
    - ``lazy/sign_changes``: share of the rectifiers' inputs (ReLU and its relatives) whose sign differs from that at
      :math:`W_0`; for a layer, the rectifiers behind it;
    - ``lazy/linearization_gap`` (of the network only): :math:`\|f(W) - f(W_0) - J(W_0)(W - W_0)\| / \|f(W) - f(W_0)\|`,
      0 being a linear model;
    - ``lazy/kernel_alignment`` (if asked for): cosine of the tangent kernels at :math:`W_0` and :math:`W`.

    These are computed in fp32 in evaluation mode with the present buffers (BatchNorm statistics) on both sides, so that
    only the weights differ. A network with BatchNorm looks less lazy by that than with the statistics of its start.

    Vulnerability: ``lazy/single_step@<beta>``, the share of rightly predicted samples whose prediction changes after
    one step of length :math:`\beta \|x\|_2 / \sqrt d` up the gradient of the loss, :math:`x` being the network's input,
    and ``lazy/fgsm``, the same share at ``eps`` in pixels. Without logits ``(N, classes)`` or classes ``(N,)`` at
    ``target_key`` it is the relative growth of the loss: ``lazy/single_step_loss@<beta>`` and ``lazy/fgsm_loss``. The
    loss is that of ``training_step``, or ``attack_loss`` where the module has it.

    The probe is the start of the first validation batch (without validation, of the first training batch) for the whole
    run. The weights are those that are validated. When training has ended the callback logs a table of the
    layers and three figures, and warns if training was lazy and one step fools the network. Training is bit-identical
    with and without it. What cannot be measured is left out, and a warning says why.

    Cost: as much time as about fifteen forward passes of the probe for each measurement; memory on the CPU for one copy
    of the weights, and on the device, while measuring, for two more. Checkpoints hold that copy and the probe, and a
    resumed run goes on with both.

    Args:
        betas: Lengths of the single step.
        eps: Radius of FGSM, in pixels.
        num_samples: The most samples in the probe.
        every_n_epochs: Measure after every so many epochs, and at the end. In between the last numbers are logged.
        kernel_samples: Compare tangent kernels on so many samples of the probe; 0 does not. Each costs two backward
            passes, and memory for one gradient.
        lazy_below: Training counts as lazy if ``lazy/movement`` is less than this when it ends.
        vulnerable_above: The network counts as vulnerable if the single step with the largest beta changes more than
            this share of the right predictions.
        input_key: Which part of a batch holds the inputs: position or name; a list for several. None
            infers it from the signature of ``forward``.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.
        mean: Mean that pixels were normalised with; None takes the data module's, else 0.
        std: Standard deviation that pixels were normalised with; None takes the data module's, else 1.
        bounds: Smallest and largest pixel; ``"pixels"`` is [0, 1]; ``"none"`` takes inputs as they are, with ``eps`` in
            their units, as inputs ``(N, values)`` always are.
        seed: Seed of the random projections of the kernel.
        on_failure: ``"warn"``, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range.
        MisconfigurationException: Under strategies in which no rank has the whole model.

    Example:
        >>> lazy = LazyTrainingCallback(betas=[1.0], every_n_epochs=2)
        >>> trainer = pl.Trainer(callbacks=[lazy], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        betas: list[float] | None = None,
        eps: float | str = "8/255",
        *,
        num_samples: int = 64,
        every_n_epochs: int = 1,
        kernel_samples: int = 0,
        lazy_below: float = 0.1,
        vulnerable_above: float = 0.5,
        input_key: int | str | list[int | str] | None = None,
        target_key: int | str | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        bounds: list[float] | Literal["pixels", "none"] = "pixels",
        seed: int = 0,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__(on_failure)
        chosen = [0.5, 1.0, 2.0] if betas is None else betas
        if not isinstance(chosen, list | tuple) or not chosen or not all(map(_is_length, chosen)):
            raise ValueError(f"Expected `betas` above 0, at least one, but got {betas}.")
        check_at_least(1, num_samples=num_samples, every_n_epochs=every_n_epochs)
        check_at_least(0, kernel_samples=kernel_samples)
        self.betas, self.eps, self.num_samples, self.every_n_epochs = betas, eps, num_samples, every_n_epochs
        self.kernel_samples, self.lazy_below, self.vulnerable_above = kernel_samples, lazy_below, vulnerable_above
        self.input_key, self.target_key, self.mean, self.std = input_key, target_key, mean, std
        self.bounds, self.seed = bounds, seed
        keys = as_keys(input_key)
        self._settings = LazinessSettings(
            betas=tuple(chosen),
            eps=parse_fraction(eps),
            kernel_samples=kernel_samples,
            target_key=target_key,
            seed=seed,
            pixels=AttackInputs(keys, mean, std, bounds),
            network=AttackInputs(keys, None, None, "none"),
        )
        self.history: list[Measurement] = []
        self._start: State = {}
        self._probe = Probe(num_samples)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and begin anew."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.history, self._start = [], {}
            self._probe = Probe(self.num_samples)
            add_layout(trainer, "lazy training", _CHARTS)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights that training begins from, unless a resumed run has them."""
        super().on_fit_start(trainer, pl_module)
        self._start = self._start or self.guard.attempt(
            trainer,
            lambda: {name: tensor.to("cpu", copy=True) for name, tensor in weights_of(pl_module).items()},
            "could not measure the weights at the start",
            {},
        )

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the probe."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if trainer.state.fn == "fit":
            self._keep_probe(trainer, batch)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the probe where there is no validation."""
        if not trainer.enable_validation:
            self._keep_probe(trainer, batch)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the weights that are validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log_epoch(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure here where there is no validation."""
        if not trainer.enable_validation:
            self._log_epoch(trainer, pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the last weights, unless that has happened; report."""
        if not self.history or self.history[-1].step != trainer.global_step:
            measurement = self._measure(trainer, pl_module)
            self.guard.attempt(trainer, lambda: show(trainer, Report(measurement.tags())), "not all is shown")
        if not self.history:
            self.guard.warn("it measured nothing. Its other warnings say why.", NoEffectWarning)
            return
        self.guard.attempt(
            trainer,
            lambda: show(trainer, lazy_report(self.history, self.lazy_below, self.vulnerable_above)),
            "not all is shown",
        )
        last = self.history[-1]
        weights = f"the weights that were validated at step {last.step}"
        note_step(trainer, "lazy_training", describe_laziness(last.numbers), weights=weights)
        danger = describe_danger(last.numbers, self.lazy_below, self.vulnerable_above)
        if danger and not is_fast_dev_run(trainer):
            warn(danger)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The weights at the start, the probe, and the measurements so far."""
        history = [[each.step, dict(each.numbers)] for each in self.history]
        return {"start": dict(self._start), "probe": self._probe.tensors(), "history": history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the start of the interrupted run."""
        self._start = dict(state_dict["start"])
        self._probe.load(state_dict["probe"])
        self.history = [Measurement(step, dict(numbers)) for step, numbers in state_dict["history"]]

    def _keep_probe(self, trainer: pl.Trainer, batch: Any) -> None:
        try:
            self._probe.keep(batch)
        except Exception as error:
            self._fail(trainer, "a probe", describe_error(error))

    def _log_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = not self.history or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        measurement = self._measure(trainer, pl_module) if due else self.history[-1]
        show(trainer, Report(measurement.tags()), pl_module)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Measurement:
        """All ranks on rank 0's probe, and then rank 0's numbers."""
        batch = trainer.strategy.broadcast(self._probe.batch, 0)
        try:
            laziness = measure_laziness(trainer, pl_module, self._start, batch, self._settings)
        except Exception as error:
            laziness = Laziness(failures={"anything": describe_error(error)})
        laziness = trainer.strategy.broadcast(laziness, 0)
        for subject, reason in laziness.failures.items():
            self._fail(trainer, subject, reason)
        measurement = Measurement(trainer.global_step, laziness.numbers)
        self.history += [measurement] if laziness.numbers else []
        return measurement

    def _fail(self, trainer: pl.Trainer, subject: str, reason: str) -> None:
        self.guard.fail(trainer, RankError(reason), f"could not measure {subject}", once=True)


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
