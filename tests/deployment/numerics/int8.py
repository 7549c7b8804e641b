"""Symmetric int8 in numpy, written down once more: what the tests of quantisation compare with."""

import numpy as np

from lightning_robust.deployment.numerics.calibration import calibrate
from lightning_robust.deployment.numerics.quantise import operands, quantise_products
from lightning_robust.processor import processor_flags

HAS_VNNI = any("vnni" in flag for flag in processor_flags())
"""Whether the processor adds products of int8 in 32 bits; sums of two end at 16 bits without it, in some kernels."""


def draw(*shape):
    """Normal numbers, the same for the same shape."""
    return np.random.default_rng([*shape]).standard_normal(shape).astype(np.float32)


def quantised(model, feeds, exclude=(), method="minmax"):
    """The graph in int8, calibrated on what it is fed."""
    graph, tensors = operands(model)
    return quantise_products(model, calibrate(graph, feeds, tensors, method), exclude)


def to_int8(values, scale):
    """Nearest integers, ties to even, within [-128, 127]."""
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int8)


def channel_scales(weight, axis):
    """max |w| / 127 of each channel, in a shape that broadcasts."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return (np.abs(weight).max(others, keepdims=True) / np.float32(127)).astype(np.float32)


def conv2d(x, w, *, padding=1, stride=1, groups=1):
    """A convolution of integers in int32, the sums written out."""
    x = np.pad(x.astype(np.int32), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    w = w.astype(np.int32)
    n, _, height, width = x.shape
    out, within, kh, kw = w.shape
    rows, columns = (height - kh) // stride + 1, (width - kw) // stride + 1
    y = np.zeros((n, out, rows, columns), np.int32)
    for channel in range(out):
        first = channel // (out // groups) * within
        for i in range(rows):
            for j in range(columns):
                window = x[:, first : first + within, i * stride : i * stride + kh, j * stride : j * stride + kw]
                y[:, channel, i, j] = (window * w[channel]).sum((1, 2, 3))
    return y
