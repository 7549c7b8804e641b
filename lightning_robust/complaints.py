"""Errors as sentences for the one who gave the arguments, and which errors those are."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_MENDABLE = (ValueError, TypeError, OSError, ImportError, RuntimeError)
_READERS = frozenset({"_pickle", "google", "lightning", "onnx", "onnxruntime", "safetensors", "yaml", "zipfile"})
"""Libraries whose errors are of none of the built-in kinds, and say that they were given the wrong thing."""
_LIBRARIES = tuple(
    {str(Path(__file__).parent), "<", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))}
)
"""Where files of code begin that is not the user's."""


def one_line(error: BaseException) -> str:
    """An error in a line of a report: its class and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else 'no message'}"


def sentence(error: BaseException) -> str:
    r"""An error in one line for the user: its message, behind its class where that is none of those that we raise.

    Example:
        >>> sentence(ValueError("Expected a number,\n  but got none.")), sentence(EOFError())
        ('Expected a number, but got none.', 'EOFError: no message')
    """
    text = _shorten_state(" ".join(str(error).split()))
    ours = isinstance(error, _MENDABLE) or type(error).__name__ == "MisconfigurationException"
    return text if text and ours else f"{type(error).__name__}: {text or 'no message'}"


def _shorten_state(text: str) -> str:
    """A complaint of torch about a state dict, with the first of the tensors that it lists and their number."""
    _, loading, listed = text.partition("Error(s) in loading state_dict for ")
    if not loading:
        return text
    parts = []
    for said, found in (("lacks", "Missing"), ("has besides", "Unexpected")):
        names = re.findall(
            r'"([^"]+)"', next(iter(re.findall(rf"{found} key\(s\) in state_dict: ([^:]*)", listed)), "")
        )
        parts += [f"it {said} {names[0]}{_more(names)}"] if names else []
    shapes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)", listed)
    parts += [f"{name} has shape ({got}) for ({wanted}){_more(shapes)}" for name, got, wanted in shapes[:1]]
    model = listed.partition(":")[0]
    return (
        f"Expected a checkpoint of this {model}, but {', '.join(parts)}. Build the model with the arguments of that "
        "file's training."
    )


def _more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def can_be_mended(error: BaseException) -> bool:
    """Whether an error is of a kind that says that something was given wrongly.

    Example:
        >>> can_be_mended(ValueError("Expected a number.")), can_be_mended(ZeroDivisionError("division by zero"))
        (True, False)
    """
    return isinstance(error, (*_MENDABLE, EOFError)) or type(error).__module__.split(".")[0] in _READERS


def is_about_arguments(error: BaseException) -> bool:
    """Whether an error in a training is about what was asked for, and not about the code that trains.

    No code of the user was running when it was raised, and somebody raised it on purpose, with a sentence; or it is
    about a file.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if any(not frame.filename.startswith(_LIBRARIES) for frame in frames) or "Traceback" in str(error):
        return False
    on_purpose = bool(frames) and (frames[-1].line or "").startswith("raise")
    about_a_file = isinstance(error, (OSError, ImportError)) or reads_weights(error)
    return can_be_mended(error) and (on_purpose or about_a_file)


@contextmanager
def naming(path: str | Path | None) -> Iterator[None]:
    """What can be mended and does not name the file that it is about, names it.

    Raises:
        ValueError: With the file before the sentence.

    Example:
        >>> with naming("a.onnx"):
        ...     raise ValueError("Expected a number, but got none.")
        Traceback (most recent call last):
            ...
        ValueError: a.onnx: Expected a number, but got none.
    """
    try:
        yield
    except Exception as error:
        if path is None or str(path) in str(error) or not can_be_mended(error):
            raise
        raise ValueError(f"{path}: {sentence(error)}") from error


def reads_weights(error: BaseException) -> bool:
    """Whether an error came while torch was reading a file of weights."""
    names = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "torch.serialization" in names
