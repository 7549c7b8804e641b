"""Interpolation of fine-tuned weights back towards the weights that fine-tuning began from."""

from lightning_robust.callbacks.merging.wise_ft.callback import WiSEFTCallback as WiSEFTCallback
