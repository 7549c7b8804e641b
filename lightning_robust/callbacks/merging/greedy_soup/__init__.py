"""Soups of checkpoints, cooked at the end of a fit."""

from lightning_robust.callbacks.merging.greedy_soup.callback import GreedySoupCallback as GreedySoupCallback
