"""Fine-tuned weights, moved back part of the way to where they began."""

from lightning_robust.callbacks.merging.wise_ft.callback import WiSEFTCallback as WiSEFTCallback
