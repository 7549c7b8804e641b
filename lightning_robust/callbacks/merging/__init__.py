"""One set of weights out of several: greedy soups, WiSE-FT."""

from lightning_robust.callbacks.merging.greedy_soup import GreedySoupCallback as GreedySoupCallback
from lightning_robust.callbacks.merging.wise_ft import WiSEFTCallback as WiSEFTCallback
