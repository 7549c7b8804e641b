"""Averages of the weights beside the module: SWA, EMA, LAWA, and SWALP in low precision."""

from lightning_robust.callbacks.averaging.callback import SWACallback as SWACallback
