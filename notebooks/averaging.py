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
# # Averages of weights: SWA, EMA, soups, WiSE-FT
#
# You get each of the four as one callback on one small training, with what it logs and how to read it. You see when an
# average helps (noisy weights, at a learning rate that stays high) and when it cannot. At the end you have two curves that
# tell you which mixture of weights to ship: the greedy soup, ingredient by ingredient, and WiSE-FT over alpha.
#
# The training takes seconds, on 1,500 pictures, so differences of a point are chance; the measured ones are at the end.

# %%
# %matplotlib inline
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image as mpimg
import matplotlib.pyplot as plt
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_robust import GreedySoupCallback, SWACallback, WiSEFTCallback
from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|logging interval|bn_refresh).*")
folder = Path(tempfile.mkdtemp())


class Classifier(ImageClassifier):
    """The demo's classifier with plain SGD at a constant rate: weights stay noisy, so there is something to average."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9)


def fit(name, callbacks, *, start=None, epochs=6, rate=0.1, data=None):
    pl.seed_everything(0, verbose=False)
    module = Classifier(width=8, learning_rate=rate)
    if start is not None:
        module.load_state_dict(start)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=CSVLogger(folder, name=name, version=0),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=8,
    )
    trainer.fit(module, data or FashionMNISTData(num_train=1500, batch_size=50))
    return trainer, module


def history(name, column):
    """A metric over the epochs, from the file that the logger wrote."""
    lines = (folder / name / "version_0" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    return [float(row[column]) for row in rows if row.get(column)]


def show(name, tag):
    """A figure that a callback logged; TensorBoard shows the same one."""
    path = next((folder / name).rglob(f"{tag}-*.png"))
    figure, axes = plt.subplots(figsize=(7, 4.6))
    axes.imshow(mpimg.imread(path))
    axes.axis("off")
    figure.tight_layout(pad=0)
    plt.show()


# %% [markdown]
# ## 1. SWA and EMA in one run
#
# `SWACallback` keeps a mean of the epochs from the third on; `also` adds an exponential average of the same run. From
# the first snapshot on the plain `val/acc` is that of the average, which is what is saved and returned; the raw weights
# are under `swa/raw/val/acc`, the further average under `swa/ema/val/acc`.

# %%
ema = {"kind": "ema", "start": 0, "every": 1, "half_life": "0.5 epochs"}
swa = SWACallback(start=2, bn_samples=1000, also={"ema": ema})
trainer, averaged = fit("swa", [swa])
plain, raw = history("swa", "val/acc"), history("swa", "swa/raw/val/acc")
curves = {"raw weights": plain[: -len(raw)] + raw, "SWA": plain[-len(raw) :]}
curves["EMA"] = history("swa", "swa/ema/val/acc")

figure, axes = plt.subplots(figsize=(7, 3.6))
for (label, values), colour in zip(curves.items(), ("#b3b3b3", "#4c78a8", "#f58518"), strict=True):
    axes.plot(range(6 - len(values), 6), [100 * value for value in values], "o-", color=colour, label=label)
axes.set(xlabel="epoch", ylabel="validation accuracy, %", title="One run, three sets of weights")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# How to read it: the grey line lies lower and moves more than the averages. If grey is as smooth and as high as they
# are, the schedule has already brought the weights to rest, and an average buys nothing.
#
# ## 2. A greedy soup of the best epochs
#
# The soup starts with the best epoch and adds the next best as long as the mean of the weights gets better on the
# validation pictures. A fresh BatchNorm pass belongs to every mixture.

# %%
soup = GreedySoupCallback(monitor="val/acc", mode="max", ingredients="epochs", top_k=5, bn_samples=1000)
trainer, cooked = fit("soup", [soup], rate=0.15)
print("ingredients in the order of acceptance:", soup.soup.ingredients, "of", len(soup.soup.scores))
print(f"best single epoch {max(soup.soup.scores):.4f}, soup {soup.soup.score:.4f}")
show("soup", "overview")

# %% [markdown]
# How to read it: points are single ingredients, in the order they were tried; the line is the soup as it grew. A line that
# rises means that the epochs lie around one minimum. A line that stays flat means the best one alone is as good; nothing is
# lost, since the soup is never worse than its best ingredient on the pictures it was chosen with. (That is also why its
# score is a little too good: judge it on others.)
#
# ## 3. WiSE-FT: how far back towards the start
#
# Fine-tune on turned and noisy pictures, then walk on the straight line from the weights before (alpha 0) to the weights
# after (alpha 1). The first loader holds pictures like those of fine-tuning, the second one clean ones, on which
# fine-tuning has made the model worse. Chosen is the best alpha on the second that costs next to nothing on the first.

# %%
start = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
wise_ft = WiSEFTCallback(alphas=9, monitor="val/acc", mode="max", epsilon=0.01, bn_samples=1000)
narrow = FashionMNISTData(num_train=1500, batch_size=50, corruption="rotated_noisy")
trainer, mixed = fit("wise_ft", [wise_ft], start=start, epochs=3, rate=0.05, data=narrow)
print("chosen alpha:", wise_ft.chosen)
show("wise_ft", "overview")

# %% [markdown]
# The same numbers over alpha. The left end is before fine-tuning, the right end after it. A hump above both ends is what
# one hopes for; a dip in the middle says that the ends lie in different valleys and must not be mixed. Each point is 400 pictures: it
# is uncertain by four points either way, as the crosses above show.

# %%
import json

curve = json.loads(next((folder / "wise_ft").rglob("wise_ft.json")).read_text())
figure, axes = plt.subplots(figsize=(7, 3.6))
for index, (label, colour) in enumerate((("turned and noisy (tuned on)", "#f58518"), ("clean (shifted)", "#4c78a8"))):
    axes.plot(curve["alphas"], [100 * row[index] for row in curve["values"]], "o-", color=colour, label=label)
axes.axvline(wise_ft.chosen, color="#b3b3b3", linestyle="--", label="chosen")
axes.set(xlabel="alpha", ylabel="validation accuracy, %", title="Between the weights before and after fine-tuning")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What it buys when measured in earnest
#
# From docs/results/averaging.md: 10,000 pictures of Fashion-MNIST, 15 epochs, three seeds, accuracy on the test pictures.
#
# | | % |
# | --- | --- |
# | SGD at a constant rate from epoch 8 on, raw weights | 86.56 |
# | SWA of the same run | 88.50 |
# | SGD with a cosine schedule that ends at zero | 88.91 |
# | EMA beside that schedule | 88.86 |
# | best of eight short runs, by validation | 88.73 |
# | greedy soup of them | 88.96 |
#
# SWA gives back what a constant rate costs and does not beat a good schedule in so short a run. WiSE-FT gained 0.2 points on
# clean pictures there: BatchNorm statistics of a mixture come from the fine-tuning data and undo most of the way back.

# %%
assert max(curves["SWA"]) > 0.5
assert soup.soup.score >= max(soup.soup.scores)
assert len(curve["alphas"]) == 9
assert 0 <= wise_ft.chosen <= 1
