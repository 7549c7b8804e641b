"""The techniques as they are put on every guest: small settings, where they apply, and what their numbers must be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_robust import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    InitialiseCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)

from . import numbers

EPS = 0.05


@dataclass(frozen=True)
class Technique:
    """One row.

    Args:
        key: In test ids.
        make: Gives the callback for a guest.
        check: Compares what a run logged with numbers by hand.
        to: Kinds of guests that it is for.
        diagnostic: Whether training has to be bit-identical with it.
        chooses: Whether the weights it returns are others than those validated last.
    """

    key: str
    make: Callable[[Any], Any]
    check: Callable[[Any], None]
    to: tuple[str, ...] = ("pictures", "tokens", "numbers")
    diagnostic: bool = False
    chooses: bool = False

    def __str__(self):
        return self.key


def _attack(method, **settings):
    def make(guest):
        return AdversarialCallback(
            method,
            eps=EPS,
            bounds=guest.bounds,
            attack_precision="32",
            val_steps=2,
            **settings,
            **guest.keys,
        )

    return make


def _embedding(method, **settings):
    return lambda guest: AdversarialCallback(method, eps=EPS, embedding=guest.embedding, **settings, **guest.keys)


def _robust_validation(guest):
    return RobustValidationCallback(EPS, steps=0, bounds=guest.bounds, **guest.keys)


def _averaged(**settings):
    return lambda guest: SWACallback(start=0, bn_refresh=numbers.has_batchnorm(guest), **settings, **guest.keys)


def _judged(cls, **settings):
    def make(guest):
        refresh = {} if cls is LayerCriticalityCallback else {"bn_refresh": True}
        return cls(**({"monitor": "val_loss", "mode": "min"} | refresh | settings | guest.keys))

    return make


def _initialise(guest):
    return InitialiseCallback("lsuv", **{key: value for key, value in guest.keys.items() if key == "input_key"})


def _lazy(guest):
    keys = {"target_key": guest.classes} if guest.classes is not None else {}
    return LazyTrainingCallback([1.0], EPS, bounds=guest.bounds, num_samples=4, **keys, **guest.keys)


def _datapath(guest):
    keys = {"target_key": guest.classes} if guest.classes is not None else {}
    under = "bf16" if guest.kind == "tokens" else "fgsm"
    return DatapathCallback(under, eps=EPS, num_samples=8, num_paths=2, **keys, **guest.keys)


def _parity(guest):
    return DeploymentParityCallback(
        ["torch-bf16", "emulated-fp16"], num_samples=2, perturbations="none", localise=False, **guest.keys
    )


MOVABLE = ("pictures", "numbers")
TECHNIQUES = [
    Technique("initialise", _initialise, numbers.check_initialised),
    Technique("fgsm", _attack("fgsm", guard_every_n_steps=0), numbers.check_fgsm_training, MOVABLE),
    Technique("fgsm_rs", _attack("fgsm_rs"), numbers.check_attacked, MOVABLE),
    Technique("pgd", _attack("pgd", steps=2), numbers.check_attacked, MOVABLE),
    Technique("embedding_fgm", _embedding("fgm", attack_precision="32"), numbers.check_fgm_training, ("tokens",)),
    Technique("embedding_pgd", _embedding("pgd", steps=2), numbers.check_embedding, ("tokens",)),
    Technique("embedding_freelb", _embedding("freelb", steps=2), numbers.check_freelb, ("tokens",)),
    Technique("robust_validation", _robust_validation, numbers.check_robust_validation, MOVABLE, diagnostic=True),
    Technique("swa", _averaged(), numbers.check_uniform),
    Technique("ema", _averaged(kind="ema", every=1, half_life=2), numbers.check_ema),
    Technique("swalp", _averaged(every=1, word_length=8), numbers.check_uniform),
    Technique("soup", _judged(GreedySoupCallback, ingredients="epochs"), numbers.check_soup, chooses=True),
    # one loader measures no shift: the same metric stands for it
    Technique(
        "wise_ft",
        _judged(WiSEFTCallback, monitor=["val_loss", "val_loss"], alphas=3, epsilon=10.0),
        numbers.check_wise_ft,
        chooses=True,
    ),
    Technique(
        "criticality",
        _judged(LayerCriticalityCallback, draws=1, checkpoints=["2 steps"]),
        numbers.check_criticality,
        diagnostic=True,
    ),
    Technique("lazy", _lazy, numbers.check_lazy, diagnostic=True),
    Technique("datapath", _datapath, numbers.check_datapath, diagnostic=True),
    Technique("parity", _parity, numbers.check_parity, diagnostic=True),
]
