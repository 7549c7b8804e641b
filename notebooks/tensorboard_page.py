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
# # Reading the TensorBoard page
#
# You get the page of a short run with parity and an average of weights, piece by piece, with what each tag means and what to
# do when it is large. You see the pictures exactly as TensorBoard shows them, read back from its event file. Afterwards
# you know which three tags to look at first, and which one to put into a ModelCheckpoint.
#
# The lane detector is trained for seconds here, so its numbers are large; measured ones are at the end.

# %%
# %matplotlib inline
import io
import logging
import tempfile
import warnings

import lightning.pytorch as pl
import matplotlib.image as mpimg
import matplotlib.pyplot as plt
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_robust import DeploymentParityCallback, SWACallback
from lightning_robust.demo.lanes import LaneData, LaneDetector, LanePictures

for name in ("lightning.pytorch", "tensorboard"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|logging interval).*")

pl.seed_everything(0, verbose=False)
size = {"height": 96, "width": 160}
logger = TensorBoardLogger(tempfile.mkdtemp(), name="", version="run", default_hp_metric=False)
trainer = pl.Trainer(
    max_epochs=4,
    accelerator="cpu",
    logger=logger,
    callbacks=[
        LanePictures(count=2, scale=2),
        SWACallback(start=2, bn_samples=128),
        DeploymentParityCallback(
            ["onnxruntime-fp32", "emulated-tf32", "emulated-fp16"],
            perturbations=["resize_bilinear", "resize_nearest", "color_range", "jpeg_90", "bgr"],
        ),
    ],
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)
data = LaneData(num_train=256, num_val=32, batch_size=16, render_workers=0, **size)
trainer.fit(LaneDetector(channels=16, hidden=128, **size), data)

# %% [markdown]
# Everything below comes out of the event file, as `tensorboard --logdir` reads it.

# %%
events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
tags = events.Tags()
groups = {}
for tag in tags["scalars"]:
    groups.setdefault(tag.split("/")[0], []).append(tag)
print({group: len(found) for group, found in groups.items()}, "scalars")
print("pictures:", *tags["images"])
print("tables:  ", *(tag.removesuffix("/text_summary") for tag in tags["tensors"] if tag.endswith("text_summary")))


def values(tag):
    return [event.value for event in events.Scalars(tag)]


def show(tag, *, width=5.8):
    """The last picture of a tag."""
    picture = mpimg.imread(io.BytesIO(events.Images(tag)[-1].encoded_image_string), format="png")
    figure, axes = plt.subplots(figsize=(width, width * picture.shape[0] / picture.shape[1]))
    axes.imshow(picture)
    axes.axis("off")
    figure.tight_layout(pad=0)
    plt.show()


# %% [markdown]
# ## What each tag means, and what to do
#
# | tag | meaning | what to do when it is large |
# | --- | --- | --- |
# | `parity/onnxruntime-fp32/lateral_px_known_p99` | what the export does | above 0.01 px: the graph is another function; look for what depends on training mode or on the batch |
# | `parity/emulated-tf32/...` | fewer digits, the range of fp32 | switch TF32 off when building |
# | `parity/emulated-fp16/...` | what fp16 does | `parity/layers` names the layer, `parity/keep_fp32` the nodes to spare |
# | `parity/emulated-fp16/lateral_px_known_p99_low`, `_high` | its 95 % interval | lines that lie within each other's intervals differ by chance: take more samples |
# | `parity/status` | 0 is well; 4 is failed | the warning in the console says why |
# | `sensitivity/family/<family>` | what the worst difference of a kind in preprocessing would do | `lightning-robust fingerprint` says whether the deployed side has it; train against it |
# | `val/...`, `swa/raw/val/...` | the average of weights, and the raw weights of the same epoch | raw as good: the average buys nothing, leave it out |
# | `swa/snapshots` | how many epochs are in the average | 0 at the end: `start` was never reached |
#
# Units such as `lateral_px` are those of the module's `decode`; without one, read `rel_l2`. These are the few that loggers get by
# default; every other number is in `parity/parity.json`, can be monitored all the same, and is logged with `log: full`.

# %% [markdown]
# ## First look: `parity/over_epochs` and `sensitivity/families`
#
# The links of the chain at each validation; `parity/chain` shows those of the last one with their intervals.

# %%
show("parity/over_epochs")

# %% [markdown]
# What other preprocessing would do, the worst of each kind: in light grey with the motion of the picture, in dark grey beyond it;
# what lies beyond the orange rule does more harm than fp16.

# %%
show("sensitivity/families")

# %% [markdown]
# ## Second look: is it getting better?
#
# Parity is measured on the weights that were validated: from the first snapshot on, those of the average. A model that gets
# better at its task does not by itself get better at being deployed, so watch both.

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 4.2))
for tag, colour in (("swa/raw/val/lateral_px", "#b3b3b3"), ("val/lateral_px", "#4c78a8")):
    recorded = values(tag)
    panels[0].plot(range(4 - len(recorded), 4), recorded, "o-", color=colour, label=tag)
for tag, colour in (
    ("parity/onnxruntime-fp32/lateral_px_known_p99", "#4c78a8"),
    ("parity/emulated-tf32/lateral_px_known_p99", "#72b7b2"),
    ("parity/emulated-fp16/lateral_px_known_p99", "#f58518"),
    ("sensitivity/family/resize_filter", "#b3b3b3"),
):
    panels[1].semilogy(values(tag), "o-", color=colour, label=tag)
for axes, title in zip(panels, ("the task, px", "deployment, px"), strict=True):
    axes.set(title=title, xlabel="epoch", xticks=range(4))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Third look: `parity/layers` and `parity/drift`
#
# Logged once, after the fit: what each node costs alone in fp16.

# %%
show("parity/layers")

# %% [markdown]
# How the values drift from input to output: a step marks the layer where it happens, a cross one that overflows. The number is
# that of the table `parity/layers`.

# %%
show("parity/drift")

# %% [markdown]
# The tables are text in TensorBoard. This one is `parity/keep_fp32`: the nodes that go into `keep_fp32=`.

# %%
for event in events.Tensors("parity/keep_fp32/text_summary")[-1:]:
    print(event.tensor_proto.string_val[0].decode())

# %% [markdown]
# ## `val/lanes`
#
# True lines white, found ones red and blue. Look here whether a distance in pixels is one that matters.

# %%
show("val/lanes", width=6.0)

# %% [markdown]
# ## Which tag to monitor
#
# `ModelCheckpoint(monitor="parity/emulated-fp16/lateral_px_known_p99", auto_insert_metric_name=False)` keeps the epoch that deploys
# best. The demo model after four epochs on 6,000 pictures (docs/results/lanes.md): onnxruntime-fp32 8.3e-5, emulated-tf32
# 0.033, emulated-fp16 0.63 px; resize_bilinear 12, resize_nearest 41, BGR 49 px.

# %%
assert {"parity/over_epochs", "parity/chain", "sensitivity/families", "parity/layers"} <= set(tags["images"])
assert sum(len(found) for group, found in groups.items() if group in ("parity", "sensitivity", "attribution")) <= 20
assert len(values("parity/emulated-fp16/lateral_px_known_p99")) == 4
assert (
    values("parity/onnxruntime-fp32/lateral_px_known_p99")[-1] < values("parity/emulated-fp16/lateral_px_known_p99")[-1]
)
assert set(values("parity/status")) == {0.0}
