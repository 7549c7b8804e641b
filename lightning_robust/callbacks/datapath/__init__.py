"""How a perturbation grows through the network, layer by layer and channel by channel."""

from lightning_robust.callbacks.datapath.callback import DatapathCallback as DatapathCallback
