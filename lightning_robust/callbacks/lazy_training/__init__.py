"""How far training leaves its initialisation, and how easily one step fools the network."""

from lightning_robust.callbacks.lazy_training.callback import LazyTrainingCallback as LazyTrainingCallback
