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
# # How far is the deployed model from the trained one?
#
# A layer norm over channels, written by hand, on large activations. In fp32 nothing is wrong with it. In fp16 its
# squares pass 65504, become infinite, and the outputs turn into zeros without a single NaN to warn you.

# %%
# %matplotlib inline
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.figures import draw_chain
from lightning_robust.deployment.report.tables import summary
from lightning_robust.functional import PixelSpace


class Net(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.conv, self.head, self.scale = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2), scale

    def forward(self, images):
        x = self.conv(images) * self.scale
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.head(normed.mean((2, 3)))


# %% [markdown]
# Measure it: the same pictures through ONNX Runtime in fp32 and through emulated fp16, compared with PyTorch in fp64;
# then with preprocessing that differs.

# %%
torch.manual_seed(0)
pictures = torch.rand(8, 3, 32, 32)
reports = {}
for scale in (1, 1000):
    subject = Subject(frozen_copy(Net(scale)), (pictures,))
    reports[scale] = measure_parity(
        subject,
        available(["onnxruntime-fp32", "emulated-fp16"]),
        perturbations=perturbations(["resize_bilinear", "color_range", "jpeg_90", "bgr"]),
        pixels=PixelSpace(),
    )
print(summary(reports[1]))

# %%
print(summary(reports[1000]))

# %% [markdown]
# The second model's fp16 distance is of the size of its outputs, while fp32 shows nothing. The picture:

# %%
draw_chain(reports[1000])

# %%
healthy, broken = (report.targets["emulated-fp16"].metrics["rel_l2"] for report in reports.values())
assert healthy < 5e-3 < 0.1 < broken
