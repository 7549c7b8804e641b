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
# # From two dumps to a network that bears the difference
#
# In the car, pictures are a little different from those in training: here the car resizes without antialiasing, and reads
# colours of BT.601 with BT.709's matrix. You get the way from two `.npy` files to settings that train against exactly that,
# and see what becomes of the network's sensitivity. The difference is planted, so you can check every answer.
#
# The network finds the amber lamp between a red and a yellow one. Its training has never seen other colours than the right
# ones, so nothing told it where amber ends. It takes about a minute and a half on two CPU cores.

# %%
# %matplotlib inline
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import interpolate

from lightning_robust.deployment.pixels.operations import BT601, BT709, mix_channels, quantise

FOLDER = Path(tempfile.mkdtemp())


def run(*arguments):
    """A command as in a terminal, `lightning-robust ...`; its exit status and what it printed."""
    command = [sys.executable, "-m", "lightning_robust", *arguments]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)  # noqa: S603
    return done.returncode, done.stdout, done.stderr


# %% [markdown]
# ## 1. A module and its data
#
# At home you have them already. Two things are said for this library: `RobustFinder` mixes in the training against
# preprocessing, which is off until it has a weight, and `decode` says that the output is a place in pixels. In units of
# `preprocessing_unit` pixels both predictions are held together.

# %%
MODULE = '''
import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import PreprocessingMixin

HEIGHT, WIDTH, SCALE = 48, 72, 2
LAMPS = {"amber": (0.83, 0.38, 0.15), "red": (0.80, 0.22, 0.15), "yellow": (0.82, 0.58, 0.18)}


def draw_frames(count, seed):
    """Frames of a camera, twice as large as the network's input, and where the amber lamp is in that."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SCALE * HEIGHT, SCALE * WIDTH
    frames = torch.full((count, 3, height, width), 0.1)
    for cells, share in ((4, 0.4), (12, 0.3), (24, 0.2)):
        grey = torch.rand(count, 1, cells, 2 * cells, generator=generator)
        colour = 0.6 * grey + 0.4 * torch.rand(count, 3, cells, 2 * cells, generator=generator)
        frames += share * interpolate(colour, size=(height, width), mode="bilinear")
    field = torch.rand(count, 6, generator=generator).argsort(1)[:, :3]  # each lamp in a field of its own
    within = 0.25 + 0.5 * torch.rand(2, count, 3, generator=generator)
    x, y = (field % 3 + within[0]) * width / 3, (field // 3 + within[1]) * height / 2
    radius = SCALE * (3 + 2 * torch.rand(count, 3, generator=generator))
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    for lamp, rgb in enumerate(LAMPS.values()):
        colour = torch.tensor(rgb) + 0.01 * torch.randn(count, 3, generator=generator)
        colour = colour * (0.75 + 0.4 * torch.rand(count, 1, generator=generator))
        far = ((columns - x[:, lamp, None, None]) ** 2 + (rows - y[:, lamp, None, None]) ** 2).sqrt()
        inside = ((radius[:, lamp, None, None] - far) / 2 + 0.5).clamp(0, 1)[:, None]
        frames = frames * (1 - inside) + colour[..., None, None] * inside
    return (frames.clamp(0, 1) * 255).round() / 255, torch.stack([x[:, 0], y[:, 0]], 1) / SCALE - 0.5


def resize(frames):
    """Training's preprocessing: bilinear with antialiasing, as PIL has it."""
    return (interpolate(frames, size=(HEIGHT, WIDTH), mode="bilinear", antialias=True) * 255).round() / 255


class LampData(pl.LightningDataModule):
    mean, std = 0.4, 0.25

    def setup(self, stage):
        pictures = [draw_frames(count, seed) for count, seed in ((512, 1), (192, 2))]
        self.train, self.val = (TensorDataset((resize(f) - self.mean) / self.std, at) for f, at in pictures)

    def train_dataloader(self):
        return DataLoader(self.train, 32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 64)


class Finder(pl.LightningModule):
    def __init__(self, weights: str = ""):
        super().__init__()
        widths = (3, 16, 24, 24, 24, 24)
        strides = (2, 2, 1, 1, 1)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, s in zip(widths, widths[1:], strides)
        ]
        self.net = nn.Sequential(*blocks, nn.Conv2d(24, 1, 1))
        if weights:
            self.load_state_dict(torch.load(weights, weights_only=False)["state_dict"])

    def forward(self, images):
        """The mean place under a softmax over cells of 4 x 4 pixels, (N, 2)."""
        heat = self.net(images)[:, 0]
        share = heat.flatten(1).softmax(1).reshape(heat.shape)
        rows, columns = (4 * torch.arange(size, device=heat.device) + 1.5 for size in heat.shape[1:])
        return torch.stack([(share.sum(1) * columns).sum(1), (share.sum(2) * rows).sum(1)], 1)

    def training_step(self, batch, batch_idx):
        images, places = batch
        return (self(images) - places).abs().mean()

    def validation_step(self, batch, batch_idx):
        images, places = batch
        self.log("val/error_px", (self(images) - places).norm(dim=1).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decode(self, outputs):
        return {"place_px": outputs}


class RobustFinder(PreprocessingMixin, Finder): ...
'''
(FOLDER / "finder.py").write_text(MODULE)

BASE = """
seed_everything: 0
trainer:
  accelerator: cpu
  max_epochs: 20
  log_every_n_steps: 16
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: base}}
  callbacks:
    - {class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {filename: last}}
model: {class_path: finder.RobustFinder, init_args: {preprocessing_unit: 4}}
data: finder.LampData
deployment_parity:
  targets: [torch-fp32]
  perturbations: [resize_bilinear, resize_bicubic, color_matrix]
  every_n_epochs: 20
"""
(FOLDER / "base.yaml").write_text(BASE)
status, printed, errors = run("fit", "-c", "base.yaml")
assert status == 0, errors

# %% [markdown]
# ## 2. Dump the same pictures on both sides
#
# Eight pictures, as training feeds them to the network and as the car does. At home two lines write them where the network
# takes its input. To the eye they are the same.

# %%
sys.path.insert(0, str(FOLDER))
finder = importlib.import_module("finder")
frames, places = finder.draw_frames(192, seed=2)
SIZE = (finder.HEIGHT, finder.WIDTH)


def as_deployed(frames):
    small = quantise(interpolate(frames, size=SIZE, mode="bilinear", antialias=False))  # as cv2.INTER_LINEAR
    return quantise(mix_channels(BT709.inverse() @ BT601, small))


here, there = finder.resize(frames), as_deployed(frames)
np.save(FOLDER / "trained.npy", here[:8].numpy())
np.save(FOLDER / "deployed.npy", there[:8].numpy())


def show(axes, picture, title):
    axes.imshow(picture.permute(1, 2, 0).numpy())
    axes.set_title(title)
    axes.axis("off")


figure, panels = plt.subplots(1, 3, figsize=(13, 3.2))
show(panels[0], here[0], "training feeds")
show(panels[1], there[0], "the car feeds")
show(panels[2], (0.5 + 6 * (there[0] - here[0])).clamp(0, 1), "six times the difference")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 3. Three commands
#
# The first says what differs and writes the settings against it. Its exit status is 1, because something differs.

# %%
status, printed, errors = run("fingerprint", "trained.npy", "deployed.npy", "--emit", "preprocessing.yaml")
print(f"exit status {status}\n{printed}{errors}")
settings = (FOLDER / "preprocessing.yaml").read_text()
print(settings)

# %% [markdown]
# The second trains with them, everything else equal. The third sets both runs side by side. (`--emit deployed.py` would
# write the car's preprocessing as a function instead, for tests of your own.)

# %%
status, printed, errors = run(
    "fit", "-c", "base.yaml", "-c", "preprocessing.yaml", "--trainer.logger.init_args.name=cured"
)
assert status == 0, errors
status, printed, errors = run("compare", "runs/base/version_0", "runs/cured/version_0")
print(printed.split("What each switch cost")[0])
compared = status

# %% [markdown]
# A training with the settings takes nearly twice as long, so there is a control: the plain network trained on from its own
# weights for as many steps again, by the same schedule, without the settings. Plain training twice over costs about what the
# cured one did. What the control gains too is not the settings' merit.


# %%
def checkpoint_of(name):
    (checkpoint,) = (FOLDER / "runs" / name / "version_0" / "checkpoints").glob("*.ckpt")
    return checkpoint


status, printed, errors = run(
    *("fit", "-c", "base.yaml", "--trainer.logger.init_args.name=longer"),
    f"--model.init_args.weights={checkpoint_of('base')}",
)
assert status == 0, errors

# %% [markdown]
# ## 4. Before and after
#
# `compare` shows the catalogue's differences of the same families, which the second training has seen. The last word has the
# planted one, on 192 pictures that no training has seen: how far does the answer move from training's pixels to the
# car's, and how wrong is it on either side?

# %%
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


def quantiles(distance):
    return [float(distance.quantile(q)) for q in QUANTILES.values()]


answers, moved, wrong = {}, {}, {}
for name in ("base", "longer", "cured"):
    network = finder.RobustFinder.load_from_checkpoint(checkpoint_of(name), map_location="cpu").eval()
    with torch.no_grad():
        answers[name] = [network((side - finder.LampData.mean) / finder.LampData.std) for side in (here, there)]
    moved[name] = (answers[name][1] - answers[name][0]).norm(dim=1)
    wrong[name] = [(answer - places).norm(dim=1) for answer in answers[name]]
    rows = {"moved": moved[name], "error, training's pixels": wrong[name][0], "error, the car's": wrong[name][1]}
    for label, values in rows.items():
        print(f"{name:7}{label:26}", *(f"{q} {v:6.2f} px " for q, v in zip(QUANTILES, quantiles(values), strict=True)))

# %%
worst = moved["base"].argsort(descending=True)[:4]
figure, grid = plt.subplots(3, 4, figsize=(13, 7.5), layout="constrained")
for row, name in zip(grid, answers, strict=True):
    for axes, picture in zip(row, worst, strict=True):
        show(axes, there[picture], f"{name}: moves {moved[name][picture]:.1f} px")
        (x, y), (to_x, to_y) = (answer[picture].tolist() for answer in answers[name])
        axes.plot([x, to_x], [y, to_y], color="white", linewidth=1)
        axes.plot(
            x, y, "o", markersize=11, markerfacecolor="none", markeredgecolor="white", label="on training's pixels"
        )
        axes.plot(to_x, to_y, "x", markersize=9, color="cyan", markeredgewidth=2, label="on the car's")
legend = {"ncols": 2, "facecolor": "grey", "labelcolor": "white"}
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", **legend)
plt.show()

figure, charts = plt.subplots(1, 2, figsize=(13, 3.4), layout="constrained", sharey=True)
at = np.arange(len(QUANTILES))
for shift, name, colour in ((-0.27, "base", "tab:red"), (0, "longer", "tab:grey"), (0.27, "cured", "tab:blue")):
    for axes, values in zip(charts, (moved[name], wrong[name][0]), strict=True):
        axes.bar_label(axes.bar(at + shift, quantiles(values), 0.25, label=name, color=colour), fmt="%.2f")
for axes, title in zip(charts, ("moved by the planted difference", "error on training's pixels"), strict=True):
    axes.set_xticks(at, QUANTILES)
    axes.set_title(title)
charts[0].set(yscale="log", ylim=(0.03, 40), ylabel="px of the network's input")
charts[0].legend(loc="upper left")
plt.show()

# %% [markdown]
# What moved by whole pixels moves by tenths: the red lamp no longer pulls the answer, but for a hard picture here and there. On
# training's own pixels the network is as good as before.
#
# The control says what is owed to more training: on training's own pixels all of it and more. Trained on without the settings,
# the network errs by half as much there (a median of 0.09 px; 0.19 px before, 0.17 px cured), so at equal cost the cure is paid
# for in clean error. It does nothing against the difference: the median moves by 0.12 px instead of 0.14, and p99 by 13.6 px
# instead of 6.7. Cured, p99 is 0.8 px. This is one seed, and the last hundredth of 192 pictures is two of them. Where the deployed side can be mended, mend it there: the second
# line of each cause above is the line of code to look for. For the lane detector, a real recording, every family and several
# seeds see `benchmarks/cure.py`.

# %%
assert "color_matrix" in settings
assert "resize_bilinear" in settings
assert compared == 0
base, longer, cured = (torch.tensor(quantiles(moved[name])) for name in moved)
assert (3 * cured[1:] < longer[1:]).all()
assert wrong["longer"][0].mean() < wrong["base"][0].mean()
assert 1.5 * cured[0] < base[0]
assert (3 * cured[1:] < base[1:]).all()
assert wrong["cured"][0].mean() < 1.15 * wrong["base"][0].mean()
