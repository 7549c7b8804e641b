"""Errors of torch's exporter in the words of who can do something about them."""

from __future__ import annotations

import re

import torch

from lightning_robust.deployment.graph.origin import user_line

_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


class ExportError(RuntimeError):
    """The module could not be turned into ONNX. The message names the operator and the line where there is one.

    Args:
        message: What happened, and what to do.
        operator: The operator that ONNX does not have, if that is why.
    """

    def __init__(self, message: str, operator: str | None = None) -> None:
        super().__init__(message)
        self.operator = operator


def explained(error: Exception, program: torch.export.ExportedProgram | None = None) -> ExportError:
    """What a user can do about an error of the exporter.

    Args:
        error: As torch raised it.
        program: The captured module, in which unknown operators are looked up.

    Example:
        >>> print(explained(ValueError("no such thing")))
        torch could not export the module: no such thing
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    text = "\n".join(str(link) for link in chain)
    unknown = _UNKNOWN.search(text)
    if unknown:
        return ExportError(
            f"ONNX has no operator for {unknown[1]}{_where(unknown[1], program)}. Write it with operators that ONNX "
            "has, or leave it out of `forward` and apply it after the engine.",
            unknown[1],
        )
    if "specializ" in text or "Constraints violated" in text:
        return ExportError(
            "The graph fixes the batch size: `forward` turns it into a Python number somewhere "
            f"({_first_line(text)}). Use `x.shape[0]`, `flatten(1)` or -1 instead of a literal batch."
        )
    where = _at(user_line(text)[0])
    return ExportError(f"torch could not export the module: {_first_line(str(chain[-1]))}{where}")


def _where(operator: str, program: torch.export.ExportedProgram | None) -> str:
    """Where an operator, or one that decomposes into it, stands in the user's code."""
    for node in program.graph.nodes if program is not None else ():
        name = str(node.target).removesuffix(".default")
        if node.op == "call_function" and operator.startswith(name):
            return _at(user_line(node.meta.get("stack_trace") or "")[0])
    return ""


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def _at(frame: str) -> str:
    return f" at {frame}" if frame else ""
