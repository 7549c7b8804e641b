"""The mathematics: tensors in, tensors out. Imports torch and nothing of Lightning or ONNX."""

from lightning_robust.functional.pixels import PixelSpace as PixelSpace
