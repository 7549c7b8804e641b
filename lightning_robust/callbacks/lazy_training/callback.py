"""LazyTrainingCallback: how far training leaves its initialisation, beside how easily one gradient step fools it.

Hooks, state and logging only; what is measured stands in ``laziness.py``, how it looks in ``laziness_report.py``.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_robust.callbacks.adversarial.objective import AttackInputs
from lightning_robust.callbacks.lazy_training.measure import Laziness, Numbers, Settings, measure_laziness, weights_of
from lightning_robust.callbacks.lazy_training.report import Point, draw, longest_step, table
from lightning_robust.functional.averaging import State
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.logging import add_layout, log_figure, log_scalars, log_table, write_layout
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run, refuse_sharded
from lightning_robust.structures import get_args, map_tensors, rebuild, take_rows, tensors_in


class LazyTrainingCallback(pl.Callback):
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
    - ``lazy/sign_changes``: share of the rectifiers' inputs (ReLU and its relatives) whose sign is another than with
      :math:`W_0`; of a layer, those behind it;
    - ``lazy/linearization_gap`` (of the network only): :math:`\|f(W) - f(W_0) - J(W_0)(W - W_0)\| / \|f(W) - f(W_0)\|`,
      0 being a linear model;
    - ``lazy/kernel_alignment`` (if asked for): cosine of the tangent kernels at :math:`W_0` and :math:`W`.

    These are computed in fp32 in evaluation mode with the present buffers (BatchNorm statistics) on both sides, so that
    weights alone differ. A network with BatchNorm looks less lazy by that than it would with statistics of its own
    start.

    Vulnerability: ``lazy/single_step@<beta>``, the share of rightly predicted samples whose prediction changes after
    one step of length :math:`\beta \|x\|_2 / \sqrt d` up the gradient of the loss, :math:`x` being what the network is
    fed, and ``lazy/fgsm`` likewise at ``eps`` in pixels. Where the outputs are no logits ``(N, classes)`` or the batch
    holds no classes ``(N,)`` at ``target_key``, it is the relative growth of the loss: ``lazy/single_step_loss@<beta>``
    and ``lazy/fgsm_loss``. The loss is that of ``training_step``, or ``attack_loss`` where the module has it.

    The probe is the first batch that validation sees (without validation, training), as far as ``num_samples``, for the
    whole run. The weights are those that are validated. When training has ended the callback logs a table of the
    layers and a figure, and warns if training was lazy and one step fools the network. Training is bit-identical with
    and without it. What cannot be measured is left out, and a warning says why.

    Cost: as much time as about fifteen forward passes of the probe for each measurement; memory on the CPU for one copy
    of the weights, and on the device, while measuring, for two more. Checkpoints hold that copy and the probe, and a
    resumed run goes on with both.

    Args:
        betas: Lengths of the single step.
        eps: Radius of FGSM, in pixels.
        num_samples: Size of the probe, at most.
        every_n_epochs: Measure after every so many epochs, and at the end. In between the last numbers are logged.
        kernel_samples: Compare tangent kernels on so many samples of the probe; 0 does not. Each costs two backward
            passes, and memory for one gradient.
        lazy_below: Training counts as lazy if ``lazy/movement`` is less than this when it ends.
        vulnerable_above: The network counts as vulnerable if the single step with the largest beta changes more than
            this share of the right predictions.
        input_key: Which part of a batch holds the inputs: position or name; a list for several.
        target_key: Where the classes are.
        mean: Mean that pixels were normalised with; None takes the data module's, else 0.
        std: Standard deviation likewise, else 1.
        bounds: Smallest and largest pixel; ``"pixels"`` is [0, 1]; ``"none"`` takes inputs as they are, with ``eps`` in
            their units, as inputs ``(N, values)`` always are.
        seed: Of the random projections of the kernel.
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
        input_key: int | str | list[int | str] = 0,
        target_key: int | str = 1,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        bounds: list[float] | Literal["pixels", "none"] = "pixels",
        seed: int = 0,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        chosen = [0.5, 1.0, 2.0] if betas is None else betas
        if not chosen or min(chosen) <= 0:
            raise ValueError(f"Expected `betas` above 0, at least one, but got {betas}.")
        if num_samples < 1 or every_n_epochs < 1 or kernel_samples < 0:
            raise ValueError(
                "Expected `num_samples` and `every_n_epochs` of at least 1 and `kernel_samples` of at least 0, but got "
                f"{num_samples}, {every_n_epochs} and {kernel_samples}."
            )
        self.betas, self.eps, self.num_samples, self.every_n_epochs = betas, eps, num_samples, every_n_epochs
        self.kernel_samples, self.lazy_below, self.vulnerable_above = kernel_samples, lazy_below, vulnerable_above
        self.input_key, self.target_key, self.mean, self.std = input_key, target_key, mean, std
        self.bounds, self.seed, self.on_failure = bounds, seed, on_failure
        keys = input_key if isinstance(input_key, list) else [input_key]
        self._settings = Settings(
            betas=tuple(chosen),
            eps=parse_fraction(eps),
            kernel_samples=kernel_samples,
            target_key=target_key,
            seed=seed,
            pixels=AttackInputs(keys, mean, std, bounds),
            network=AttackInputs(keys, None, None, "none"),
        )
        self.history: list[Point] = []
        self._start: State = {}
        self._probe: Any = None
        self._saved_probe: list[Tensor] = []
        self._warned: set[str] = set()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and begin anew."""
        refuse_sharded(trainer, "LazyTrainingCallback")
        if stage != "fit":
            return
        self.history, self._start, self._probe, self._saved_probe, self._warned = [], {}, None, [], set()
        charts = {
            "laziness": ["lazy/movement$", "lazy/linearization_gap", "lazy/sign_changes$", "lazy/kernel_alignment"],
            "fooled by one step": ["lazy/single_step.*", "lazy/fgsm.*"],
            "movement of each layer": ["lazy/movement/.*"],
        }
        add_layout(trainer, "lazy training", charts)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights that training begins from, unless a resumed run has them."""
        write_layout(trainer)
        try:
            self._start = self._start or {
                name: tensor.to("cpu", copy=True) for name, tensor in weights_of(pl_module).items()
            }
        except Exception as error:
            self._fail("the weights at the start", error)

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the probe."""
        if trainer.state.fn == "fit":
            self._keep_probe(batch)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the probe where there is no validation."""
        if not trainer.enable_validation:
            self._keep_probe(batch)

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
        """Measure the end, if it was not; report."""
        if not self.history or self.history[-1].step != trainer.global_step:
            log_scalars(trainer, _tagged(self._measure(trainer, pl_module)))
        if not self.history:
            rank_zero_warn(
                "LazyTrainingCallback measured nothing. Its other warnings say why.", category=NoEffectWarning
            )
            return
        try:
            self._report(trainer)
        except Exception as error:
            self._fail("what the report shows", error)
        if not is_fast_dev_run(trainer):
            self._judge(self.history[-1].numbers)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The weights at the start, the probe, and what was measured."""
        probe = self._saved_probe if self._probe is None else tensors_in(self._probe)
        history = [[point.step, dict(point.numbers)] for point in self.history]
        return {"start": dict(self._start), "probe": list(probe), "history": history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the start of the interrupted run."""
        self._start, self._saved_probe = dict(state_dict["start"]), list(state_dict["probe"])
        self.history = [Point(step, dict(numbers)) for step, numbers in state_dict["history"]]

    def _keep_probe(self, batch: Any) -> None:
        if self._probe is not None:
            return
        try:
            size = len(get_args(batch, self._settings.pixels.keys)[0])
            rows = take_rows(batch, slice(self.num_samples), size)
            probe = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), rows)
            if len(self._saved_probe) == len(tensors_in(probe)):
                probe = rebuild(probe, iter(self._saved_probe))
            self._probe = probe
        except Exception as error:
            self._fail("a probe", error)

    def _log_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = not self.history or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        numbers = self._measure(trainer, pl_module) if due else self.history[-1].numbers
        pl_module.log_dict(_tagged(numbers), add_dataloader_idx=False)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Numbers:
        """All ranks on rank 0's probe, and then rank 0's numbers."""
        batch = trainer.strategy.broadcast(self._probe, 0)
        try:
            found = measure_laziness(trainer, pl_module, self._start, batch, self._settings)
        except Exception as error:
            found = Laziness(failures={"anything": f"{type(error).__name__}: {error}"})
        found = trainer.strategy.broadcast(found, 0)
        for what, reason in found.failures.items():
            self._fail(what, reason)
        if found.numbers:
            self.history.append(Point(trainer.global_step, found.numbers))
        return found.numbers

    def _report(self, trainer: pl.Trainer) -> None:
        log_table(trainer, "lazy/layers", *table(self.history[-1].numbers))
        if trainer.loggers:
            log_figure(trainer, "lazy/overview", draw(self.history, self.lazy_below, self.vulnerable_above))

    def _fail(self, what: str, reason: Exception | str) -> None:
        """Once for each."""
        text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        message = f"LazyTrainingCallback could not measure {what}. {text}"
        if self.on_failure == "raise":
            raise RuntimeError(message)
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(message)

    def _judge(self, numbers: Numbers) -> None:
        fooled = longest_step(numbers)
        movement = numbers.get("movement", 1.0)
        if fooled is None or movement >= self.lazy_below or fooled[1] <= self.vulnerable_above:
            return
        beta, share = fooled
        rank_zero_warn(
            f"Training was lazy and the network is easily fooled: its weights moved by {movement:.1%} of their length, "
            f"and one gradient step of {beta:g} |x| / sqrt(d) changes {share:.0%} of the right predictions. What helps "
            "most is adversarial training (`adversarial`); a smaller width or a larger learning rate lets the weights "
            "move further, which may help. Thresholds: `lazy_below`, `vulnerable_above`."
        )


def _tagged(numbers: Numbers) -> Numbers:
    return {f"lazy/{name}": value for name, value in numbers.items()}
