# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The basin: what SWA averages over
#
# You train one small network at a constant rate and look at the loss around its last three epochs and their mean. You see
# why the mean is better than each of them, how to measure a width (the loss along random directions, the largest eigenvalue
# of the Hessian), and what these numbers do not say.
#
# The training takes seconds, on 1,500 pictures; the measured comparison of SGD, SWA, EMA, soups and adversarial training is
# `benchmarks/landscape.py`.

# %%
# %matplotlib inline
import logging
import tempfile
import warnings
from itertools import islice

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lightning_robust import SWACallback
from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier
from lightning_robust.functional import (
    WeightPlane,
    filter_norms,
    largest_curvature,
    loss_along,
    loss_between,
    loss_on_plane,
    module_loss,
    random_direction,
)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|logging interval|bn_refresh).*")


class Classifier(ImageClassifier):
    """The demo's classifier with plain SGD at a constant rate: weights stay noisy, so there is something to average."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9)


def parameters(module):
    """Without BatchNorm's statistics, which belong to no other weights and are taken anew for each."""
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


class KeepEpochs(pl.Callback):
    """The weights at the end of every epoch, as SGD leaves them."""

    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append(parameters(pl_module))


pl.seed_everything(0, verbose=False)
module, data, epochs = (
    Classifier(width=8, learning_rate=0.1),
    FashionMNISTData(num_train=1500, batch_size=50),
    KeepEpochs(),
)
trainer = pl.Trainer(
    max_epochs=8,
    accelerator="cpu",
    callbacks=[epochs, SWACallback(start=5, bn_samples=1000)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    limit_val_batches=0,
    default_root_dir=tempfile.mkdtemp(),
)
trainer.fit(module, data)
swa, snapshots = parameters(module), epochs.states[-3:]

# %% [markdown]
# ## 1. The loss as a function of the weights
#
# `module_loss` makes a function of a state out of a module, data and a criterion. The module keeps its own weights, all is in
# evaluation mode, and BatchNorm's statistics are taken from the data for each set of weights: between two networks there are
# none that would fit.


# %%
def pictures_of(loader):
    """The first 500 pictures of a loader and their labels, as the network takes them, in two batches."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in islice(loader, 10)]
    images, labels = (torch.cat(parts)[:500] for parts in zip(*batches, strict=True))
    return list(zip(images.split(250), labels.split(250), strict=True))


data.setup("fit")
train, held_out = pictures_of(data.train_dataloader()), pictures_of(data.val_dataloader())
losses = {
    part: module_loss(
        module, lambda batches=batches: batches, lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none")
    )
    for part, batches in (("training", train), ("held-out", held_out))
}

# %% [markdown]
# ## 2. The basin
#
# A plane through the last three epochs. Their mean, SWA, lies in it. The loss is drawn on a grid, one evaluation a point.

# %%
plane = WeightPlane.through(*snapshots)
places = np.array([plane.place(state) for state in snapshots])
middle = np.array(plane.place(swa))
low, high = places.min(0), places.max(0)
margin = 0.5 * (high - low).max()
across, up = (np.linspace(low[axis] - margin, high[axis] + margin, 11) for axis in (0, 1))
surfaces = {part: loss_on_plane(loss, plane, across, up).numpy() for part, loss in losses.items()}

figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained")
for axes, (part, surface) in zip(panels, surfaces.items(), strict=True):
    levels = surface.min() + (np.quantile(surface, 0.95) - surface.min()) * np.linspace(0, 1, 14) ** 2
    filled = axes.contourf(across, up, surface, levels=levels, cmap="viridis_r", extend="max")
    axes.contour(across, up, surface, levels=levels, colors="white", linewidths=0.4)
    axes.plot(*places.T, "o-", color="#f58518", markeredgecolor="black", label="SGD, last three epochs")
    axes.plot(*middle, "*", color="#e45756", markeredgecolor="black", markersize=15, label="SWA, their mean")
    axes.set(title=f"{part} loss", xlabel="distance between weights", aspect="equal")
    figure.colorbar(filled, ax=axes, shrink=0.85, format="%.2f")
panels[0].set_ylabel("distance between weights")
panels[0].legend(loc="upper left", frameon=True, fontsize=8)
plt.show()

# %% [markdown]
# How to read it: the epochs lie around a basin, on its slopes, because a rate that does not fall keeps SGD from its floor. Their
# mean is better than they are on average, in training and on held-out pictures: the loss is convex here. It need not lie at the
# bottom: a late epoch can be nearer to it than an early one, and where the bottom lies differs a little between the two panels.
# If the epochs lay in different basins, there would be a ridge between them, and the mean on top of it.
#
# ## 3. How wide
#
# The rise of the loss along random directions whose filters are as long as those of the weights (Li et al. 2018): half a
# filter's length away. The same draws for both. Then the largest eigenvalue of the Hessian, and that in units of the filters'
# lengths: the first one changes when a layer is made larger and the next one smaller, although the network is the same
# function; the second one does not.


# %%
def width_of(state):
    """The mean rise along three directions, and the two eigenvalues on the first 250 training pictures."""
    rises = []
    for seed in range(3):
        direction = random_direction(state, torch.Generator().manual_seed(seed))
        left, here, right = loss_along(losses["training"], state, direction, [-0.5, 0.0, 0.5]).tolist()
        rises.append((left + right) / 2 - here)
    some = module_loss(
        module, lambda: train[:1], lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"), batchnorm="batch"
    )
    plain = largest_curvature(some, state, steps=20, tolerance=0.05)
    scaled = largest_curvature(some, state, steps=20, tolerance=0.05, scales=filter_norms(state))
    return np.mean(rises), plain.eigenvalue, scaled.eigenvalue


print("                    rise   eigenvalue   by filters")
for label, state in (("SGD, last epoch", snapshots[-1]), ("SWA", swa)):
    print("{:<17} {:>6.3f}   {:>10.1f}   {:>10.2f}".format(label, *width_of(state)))

line = loss_between(losses["held-out"], snapshots[-1], swa, [0.0, 0.5, 1.0, 1.5])
print("held-out loss from SGD to SWA and on:", [round(value, 3) for value in line.tolist()])

# %% [markdown]
# One network is one draw: do not read a difference of a tenth here as a finding, and sharpness as a number to compare networks of
# one training by, not as a certificate. What counts is the held-out loss.

# %%
at_places = {
    part: [loss_on_plane(loss, plane, [x], [y]).item() for x, y in (*places, middle)] for part, loss in losses.items()
}
for values in at_places.values():
    assert values[3] < sum(values[:3]) / 3  # SWA against the mean of the three epochs
ends = [loss_between(losses["training"], state, state, [0.0]).item() for state in (snapshots[-1], swa)]
assert abs(ends[0] - at_places["training"][2]) < 1e-3
assert np.allclose(middle, places.mean(0), atol=1e-3)
