"""Which layers may go back to their initial values, and which may not."""

from lightning_robust.callbacks.layer_criticality.callback import LayerCriticalityCallback as LayerCriticalityCallback
