"""Rules that read off an ONNX graph what will go wrong on TensorRT."""

from lightning_robust.deployment.graph.lint.finding import Finding as Finding
from lightning_robust.deployment.graph.lint.rules import HALF_RULES as HALF_RULES
from lightning_robust.deployment.graph.lint.rules import lint as lint
