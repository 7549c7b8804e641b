"""How the weights begin."""

from lightning_robust.callbacks.initialise.callback import InitialiseCallback as InitialiseCallback
