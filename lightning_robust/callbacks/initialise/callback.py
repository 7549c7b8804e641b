"""InitialiseCallback: the weights of a module are drawn, scaled or read anew before training begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from typing_extensions import override

from lightning_robust.functional.initialisation import (
    computed_weights,
    draw_weights,
    drawn_layers,
    load_fitting,
    scale_weights,
    unit_variances,
)
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.batches import first_training_batch, transferred
from lightning_robust.harness.checkpoints import read_state
from lightning_robust.harness.closing import join_summary, note_step, warn
from lightning_robust.harness.inputs import as_keys, call_forward
from lightning_robust.harness.memory import require_weights
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.ranks import describe_error, on_rank_zero
from lightning_robust.harness.trainers import NoEffectWarning, find_callbacks, refuse_sharded
from lightning_robust.layers import match_modules
from lightning_robust.suggest import first_of

Method = Literal["kaiming", "orthogonal", "small", "lsuv", "pretrained"]
_DEFAULTS: dict[str, tuple[Any, tuple[Method, ...]]] = {
    "gain": (2**0.5, ("kaiming", "orthogonal")),
    "scale": (0.1, ("small",)),
    "tolerance": (0.1, ("lsuv",)),
    "input_key": (None, ("lsuv",)),
    "checkpoint": (None, ("pretrained",)),
}
"""Argument -> its default, and the methods that take it."""


class InitialiseCallback(pl.Callback):
    r"""Begin from other weights than those that the module was built with.

    The same network trained by the same recipe ends in another place from another start, and another start may be more
    robust. One line tries it on any module, without editing it:

    - ``"kaiming"``: normal with a deviation of ``gain`` :math:`/ \sqrt n` for the :math:`n` inputs of a unit (`He et
      al. 2015 <https://arxiv.org/abs/1502.01852>`_);
    - ``"orthogonal"``: orthogonal rows of length ``gain`` (`Saxe et al. 2013 <https://arxiv.org/abs/1312.6120>`_);
    - ``"small"``: the module's own weights times ``scale``; small ones leave the lazy regime sooner (`Chizat et al.
      2018 <https://arxiv.org/abs/1812.07956>`_);
    - ``"lsuv"``: orthogonal, then each layer's outputs on the first training batch get a variance of 1 (`Mishkin and
      Matas 2015 <https://arxiv.org/abs/1511.06422>`_);
    - ``"pretrained"``: the tensors of ``checkpoint`` that fit by name and shape, the trunk of a network that was
      trained to tell how pictures are turned, say; what does not fit stays as it was built, and the closing summary
      names it.

    The weights of linear layers and convolutions are drawn, in fp32 on the CPU, from the seed of the run without taking
    from its random numbers. Biases stay, and so do weights that are frozen or all zero, which their author chose: the
    end of a residual branch, a head that begins at its bias. It happens once, when the fit starts; a fit that is
    resumed and a second fit begin from the weights that they have. Put it before all other techniques, some of which
    look at the start.

    Args:
        method: One of those above.
        gain: Of kaiming and orthogonal; by default :math:`\sqrt 2`, which keeps the scale through ReLU.
        scale: Of small; 0.1 by default.
        checkpoint: Of pretrained: the file.
        tolerance: Of lsuv: how far from 1 a variance may stay; 0.1 by default.
        input_key: Of lsuv: which part of a batch goes into ``forward``; None infers it.
        exclude: Layers that stay as they are, by regular expressions on their paths, such as the head.

    Raises:
        ValueError: For arguments out of range, and for those that the method does not take.
        FileNotFoundError: If there is no such checkpoint.
        MisconfigurationException: In ``setup``, if it stands behind another technique, or no rank has whole weights.

    Example:
        >>> trainer = pl.Trainer(callbacks=[InitialiseCallback("orthogonal")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        method: Method,
        *,
        gain: float | None = None,
        scale: float | None = None,
        checkpoint: str | None = None,
        tolerance: float | None = None,
        input_key: int | str | list[int | str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.gain, self.scale, self.checkpoint = method, gain, scale, checkpoint
        self.tolerance, self.input_key, self.exclude = tolerance, input_key, exclude
        self._settings = _settings_of(method, {name: getattr(self, name) for name in _DEFAULTS})
        self._keys = as_keys(input_key)
        if checkpoint is not None:
            read_state(checkpoint)  # what is wrong with the file is said now
        self._done = False

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything else happens."""
        if stage != "fit":
            return
        refuse_sharded(trainer, type(self).__name__)
        join_summary(trainer)
        before = find_callbacks(trainer, pl.Callback)
        ours = [
            each
            for each in before[: before.index(self)]
            if type(each).__module__.startswith("lightning_robust.callbacks.")
        ]
        if ours:
            raise MisconfigurationException(
                f"Expected InitialiseCallback before all other techniques, some of which look at the weights that "
                f"training begins from, but got it behind {type(ours[0]).__name__}. Put it first."
            )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Change the weights, the same on every rank, unless this fit goes on from others."""
        if self._done or trainer.ckpt_path:
            note_step(trainer, "initialise", "left the weights that the fit goes on from")
            return

        def work() -> tuple[str, Any]:
            told = self._initialise(trainer, pl_module)
            return told, state_on_cpu(pl_module) if trainer.world_size > 1 else None

        told, state = on_rank_zero(trainer, work, "Initialising the weights")
        if state is not None:
            pl_module.load_state_dict(state)
        self._done = True
        note_step(trainer, "initialise", told)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Whether it has happened."""
        return {"done": self._done}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave the weights of a fit that goes on."""
        self._done = state_dict["done"]

    def _initialise(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        """Change the weights, and say what was done in a few words."""
        require_weights(module, "InitialiseCallback")
        if self.method == "pretrained":
            left = load_fitting(module, read_state(str(self.checkpoint)), str(self.checkpoint))
            return f"{self.checkpoint}, {first_of(left, none='none')} stay as they were built"
        excluded = {*match_modules(module, self.exclude)} if self.exclude else set()
        layers = {name: layer for name, layer in drawn_layers(module).items() if name not in excluded}
        _tell_what_stays(module, layers, [name for name in computed_weights(module) if name not in excluded])
        generator = torch.Generator().manual_seed(torch.initial_seed())
        if self.method == "small":
            scale_weights(layers, self._settings["scale"])
        elif self.method == "lsuv":
            return f"lsuv, {self._with_unit_variances(trainer, module, layers, generator)}"
        else:
            draw_weights(layers, self.method, self._settings["gain"], generator)
        return f"{self.method}, {len(layers)} layers"

    def _with_unit_variances(
        self, trainer: pl.Trainer, module: pl.LightningModule, layers: Mapping[str, nn.Module], generator: Any
    ) -> str:
        batch = transferred(trainer, module, first_training_batch(trainer, module), 0)
        draw_weights(layers, "orthogonal", 1.0, generator)

        def run() -> None:
            with quietly(trainer, module, "training", runs="forward"), trainer.precision_plugin.forward_context():
                call_forward(module, batch, self._keys)

        try:
            found = unit_variances(layers, run, self._settings["tolerance"])
        except (MisconfigurationException, RuntimeError, TypeError) as error:
            raise MisconfigurationException(
                f"Expected {type(module).__name__}.forward to take the first training batch, whose activations lsuv "
                f"needs, but got {describe_error(error)}. Set `input_key`, or choose method='orthogonal'."
            ) from error
        far = [name for name in layers if abs(found.get(name, 0.0) - 1) >= self._settings["tolerance"]]
        return f"{len(layers)} layers, {first_of(far, none='none')} have no unit variance"


def _tell_what_stays(module: nn.Module, layers: Mapping[str, nn.Module], computed: list[str]) -> None:
    """Warn of layers whose weights are computed, or else where there is none to draw."""
    if computed:
        warn(
            f"InitialiseCallback leaves {first_of(computed)} as they are: their weights are computed from other "
            "parameters (weight_norm, spectral_norm or another parametrisation). Name them in `exclude` to say so."
        )
    elif not layers:
        warn(
            f"InitialiseCallback found no linear layer or convolution in {type(module).__name__} whose weights it may "
            "draw: they are excluded, frozen or zero.",
            NoEffectWarning,
        )


def _settings_of(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a method with its defaults.

    Raises:
        ValueError: For a method that is not known, arguments out of range, and those that it does not take.
    """
    if method not in get_args(Method):
        raise ValueError(f"Expected `method` out of {', '.join(get_args(Method))}, but got {method!r}.")
    for name, value in given.items():
        if value is not None:
            _require_taken(method, name, value)
    if method == "pretrained" and given["checkpoint"] is None:
        raise ValueError("Expected `checkpoint`, the file to begin from, for method='pretrained', but got none.")
    return {name: default if given[name] is None else given[name] for name, (default, _) in _DEFAULTS.items()}


def _require_taken(method: Method, name: str, value: Any) -> None:
    takers = _DEFAULTS[name][1]
    if method not in takers:
        raise ValueError(
            f"Expected no `{name}` with method={method!r}, which does not take it, but got {value!r}. Leave it out, or "
            f"choose {' or '.join(takers)}."
        )
    if name in ("gain", "scale", "tolerance") and not value > 0:
        raise ValueError(f"Expected `{name}` above 0, but got {value}.")
