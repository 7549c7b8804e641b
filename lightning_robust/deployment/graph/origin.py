"""Where the nodes of an exported graph come from: module, line of the user's code, and what stands there."""

from __future__ import annotations

import ast
import linecache
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LONGEST = 72
_PACKAGE = Path(__file__).parents[2]
_NOBODYS = ("site-packages", "dist-packages", str(Path(torch.__file__).parent))


@dataclass(frozen=True)
class Origin:
    """Where an ONNX node comes from.

    Args:
        module: Path of the PyTorch module, as in ``model.get_submodule(path)``; empty for the model itself.
        source: File name and line of the call in the user's code, e.g. ``"neck.py:41"``; empty if unknown.
        text: What stands in that line, e.g. ``"x = self.up(x) + y"``, the beginning of a long one; empty if unknown.
    """

    module: str
    source: str
    text: str = ""

    def __str__(self) -> str:
        """As in a report: ``neck.up2 (neck.py:41)``."""
        name = self.module or "(model)"
        return f"{name} ({self.source})" if self.source else name

    def place(self, operator: str) -> str:
        """Line and operator, module, and what stands in the line, as far as they are known.

        Example:
            >>> Origin("neck.up2", "neck.py:41", "x = self.up(x) + y").place("Add")
            'neck.py:41 Add in neck.up2 (x = self.up(x) + y)'
            >>> Origin("backbone.0", "").place("Conv")
            'Conv in backbone.0'
        """
        line = f"{self.source} {operator}" if self.source else operator
        module = f" in {self.module}" if self.module else ""
        return f"{line}{module} ({self.text})" if self.text else f"{line}{module}"


def read_origins(model: onnx.ModelProto) -> dict[str, Origin]:
    """Node name -> :class:`Origin`, from the metadata that torch's exporter leaves at nodes."""
    origins = {}
    for node in model.graph.node:
        metadata = {prop.key: prop.value for prop in node.metadata_props}
        scopes = metadata.get("pkg.torch.onnx.name_scopes")
        if scopes:
            path = (["", *ast.literal_eval(scopes)])[-2]
            source, text = user_line(metadata.get("pkg.torch.onnx.stack_trace", ""))
            origins[node.name] = Origin(path.removeprefix("module").removeprefix("."), source, text)
    return origins


def user_line(trace: str) -> tuple[str, str]:
    """The last line of the user's code in a stack trace, as ``file.py:line`` and as text; both empty without one.

    Neither torch, nor an installed package, nor this library is the user's code; this library's demo is.
    """
    frames = [(path, int(line)) for path, line in _FRAME.findall(trace) if _is_users(Path(path))]
    if not frames:
        return "", ""
    path, line = frames[-1]
    text = linecache.getline(path, line).strip()
    return f"{Path(path).name}:{line}", text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3].rstrip()}..."


def _is_users(path: Path) -> bool:
    if path.is_relative_to(_PACKAGE):
        return path.is_relative_to(_PACKAGE / "demo")
    return not str(path).startswith("<") and not any(part in str(path) for part in _NOBODYS)
