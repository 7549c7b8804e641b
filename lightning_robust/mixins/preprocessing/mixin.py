"""PreprocessingMixin: training on the differences between training's and the deployed side's preprocessing."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import override

from lightning_robust.checks import check_choices, check_positive
from lightning_robust.mixins.host_step import require_inputs_alone
from lightning_robust.mixins.objective import ObjectiveMixin, Term
from lightning_robust.mixins.preprocessing.consistency import Distance
from lightning_robust.mixins.preprocessing.entries import MEASURED, check_drawn_ranges
from lightning_robust.mixins.preprocessing.perturbed_term import Draw, PerturbedTerm

_SAVED = "preprocessing_sensitivity"


class PreprocessingMixin(ObjectiveMixin):
    r"""Training on what the deployed side's preprocessing may do differently, for any LightningModule on pictures.

    .. math:: (1 - s)\, L(f(x), y) + s\, L(f(T x), M y) + w\, D(f(x), f(T x))

    :math:`T` is drawn from the catalogue of preprocessing differences that DeploymentParityCallback measures, with
    continuous parameters; :math:`M` is what it does to the right answer. Stability training
    (`Zheng et al. 2016 <https://arxiv.org/abs/1604.04326>`_) and the consistency of AugMix (`Hendrycks et al. 2020
    <https://arxiv.org/abs/1912.02781>`_) over resize filters, codecs, colour and rounding. :math:`L` is whatever the
    host's ``training_step`` computes. :math:`D` is the symmetric KL divergence of logits (of a method ``logits``, or
    where the targets are classes), else the squared distance of what ``decode`` gives, or of the outputs, in units of
    their spread over the batch; of points that the clean prediction knows, where ``known(values, batch)`` or a decoded
    ``"confidence"`` says so, as to a parity pass. Where ``decode`` gives boxes or masks of classes, a method
    ``dense(outputs)`` gives tensors at fixed places instead, NaN where there is nothing. Its gradient flows into both
    predictions. Clean and perturbed pictures go through the network together, so that BatchNorm normalises both alike:
    in two passes of the batch's own size, each with half of the pictures in both versions, or in one for batches of
    fewer than 32.

    Entries that move the picture (shift, crop, letterbox, some resizes) need to know what moves with it. Classes do
    not, and neither do numbers and vectors, one a picture, of a module without ``moved``. Others need a method
    ``move_targets(targets, matrix)``, which ``functional.picture_motion`` helps to write for points, boxes, masks and
    lines; without it these entries are left out. Where the module has ``moved(values, matrix)``, as parity uses it, its
    answers for moved pictures are held to the moved answers.

    Logged: ``preprocessing/loss``, ``preprocessing/consistency``; the host's own ``train/loss`` stays that of clean
    inputs.

    Cost: twice a training step, k + 1 forward passes more for the worst of k. Nothing is drawn outside of the step's
    own stream of random numbers, so that a run resumes bit for bit.

    Args:
        preprocessing_weight: :math:`w`; 0 switches everything off. A tiny one with a share leaves augmentation alone.
        preprocessing_share: :math:`s`, from 0 (consistency alone) to 1.
        preprocessing_entries: ``"typical"``, ``"all"``, names of entries and families of the catalogue, or
            ``"measured"``: drawn in proportion to how far each moved the outputs in the last parity pass of the run.
            Others, and those until the first pass, are drawn by family, all alike, and then within it.
        preprocessing_draw: ``"random"``, or ``"worst"`` for the one of several draws with the largest loss.
        preprocessing_candidates: How many draws the worst is chosen from; None takes 3.
        preprocessing_groups: A batch is perturbed in so many groups, each with an entry of its own.
        preprocessing_ranges: Parameter -> smallest and largest value, as ``{"shift": [0, 1], "quality": [60, 98]}``;
            others have those of ``lightning_robust.deployment.pixels.draws.PARAMETERS``.
        preprocessing_distance: ``"auto"``, or ``"values"`` for decoded values also where there are logits.
        preprocessing_unit: The distance of values is the absolute one in this unit, as 7.5 for pixels of a frame; None
            takes the square in units of their spread, which forgets movements that are small beside it.
        preprocessing_class_dim: Along which the logits hold classes.
        preprocessing_warmup_epochs: The weight rises from 0 over so many epochs.
        preprocessing_mean: Mean that pixels in [0, 1] were normalised with; None takes the data module's, else 0.
        preprocessing_std: Standard deviation likewise, else 1.
        **kwargs: For the next class; ``input_key`` and ``target_key`` say where inputs and targets are in a batch.

    Raises:
        ValueError: For settings out of range, unknown entries or parameters, or inputs that were not normalised as
            stated.
        TypeError: For inputs that are no pictures.
        MisconfigurationException: If ``logits``, or ``forward`` where there is none, needs more than pictures; if no
            entry applies; for ``"measured"`` without parity passes.
    """

    def __init__(
        self,
        *,
        preprocessing_weight: float = 0.0,
        preprocessing_share: float = 0.5,
        preprocessing_entries: str | list[str] = "typical",
        preprocessing_draw: Draw = "random",
        preprocessing_candidates: int | None = None,
        preprocessing_groups: int = 4,
        preprocessing_ranges: dict[str, list[float]] | None = None,
        preprocessing_distance: Distance = "auto",
        preprocessing_unit: float | None = None,
        preprocessing_class_dim: int = 1,
        preprocessing_warmup_epochs: float = 0.0,
        preprocessing_mean: float | list[float] | None = None,
        preprocessing_std: float | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_amounts(preprocessing_weight, preprocessing_share, preprocessing_groups, preprocessing_warmup_epochs)
        check_choices(
            preprocessing_draw=(preprocessing_draw, Draw), preprocessing_distance=(preprocessing_distance, Distance)
        )
        check_positive(preprocessing_unit=preprocessing_unit)
        _check_candidates(preprocessing_draw, preprocessing_candidates)
        check_drawn_ranges(preprocessing_ranges or {}, preprocessing_entries)
        self.preprocessing_weight, self.preprocessing_share = preprocessing_weight, preprocessing_share
        self.preprocessing_entries, self.preprocessing_draw = preprocessing_entries, preprocessing_draw
        self.preprocessing_candidates, self.preprocessing_groups = preprocessing_candidates, preprocessing_groups
        self.preprocessing_ranges, self.preprocessing_class_dim = preprocessing_ranges, preprocessing_class_dim
        self.preprocessing_distance, self.preprocessing_unit = preprocessing_distance, preprocessing_unit
        self.preprocessing_warmup_epochs = preprocessing_warmup_epochs
        self.preprocessing_mean, self.preprocessing_std = preprocessing_mean, preprocessing_std
        # one object holds the rest, so that no name of the host's is taken
        self._preprocessing = PerturbedTerm(self)
        self._terms.append(Term(self._preprocesses, self._preprocessing.losses, self._preprocessing.prepare))

    @override
    def setup(self, stage: str) -> None:
        """Find out how pictures were normalised, and which entries there are."""
        super().setup(stage)
        if stage == "fit" and self._preprocesses():
            require_inputs_alone(self, self.output_method, "logits(inputs)")
            self._preprocessing.setup()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the last parity pass measured."""
        super().on_save_checkpoint(checkpoint)
        if self._preprocesses() and self.preprocessing_entries == MEASURED:
            checkpoint[_SAVED] = dict(self._preprocessing.sensitivity)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self._preprocessing.load(checkpoint.get(_SAVED, {}))

    def _preprocesses(self) -> bool:
        return self.preprocessing_weight > 0


def _check_amounts(weight: float, share: float, groups: int, warmup_epochs: float) -> None:
    for name, value in (("weight", weight), ("warmup_epochs", warmup_epochs)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"Expected `preprocessing_{name}` of at least 0, but got {value}.")
    if not 0 <= share <= 1:
        raise ValueError(f"Expected `preprocessing_share` from 0 to 1, but got {share}.")
    if groups < 1:
        raise ValueError(f"Expected `preprocessing_groups` of at least 1, but got {groups}.")


def _check_candidates(draws: str, candidates: int | None) -> None:
    if candidates is not None and draws != "worst":
        raise ValueError(
            f"Expected no `preprocessing_candidates` with preprocessing_draw={draws!r}, but got {candidates}. They are "
            "what preprocessing_draw='worst' chooses from."
        )
    if candidates is not None and candidates < 1:
        raise ValueError(f"Expected `preprocessing_candidates` of at least 1, but got {candidates}.")
