"""Checks of arguments that need nothing but the argument; each names it, what was expected, and what came."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from lightning_robust.suggest import did_you_mean


def check_positive(**values: float | None) -> None:
    """Refuse arguments that are zero, negative or NaN; None is an argument that was not given.

    Raises:
        ValueError: Naming the argument.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"Expected `{name}` to be positive, but got {value}.")


def check_budget(budget: float) -> None:
    """Refuse a budget that is no positive number.

    Raises:
        ValueError: Saying so.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"Expected `budget` to be a positive number, but got {budget}.")


def check_choices(**arguments: tuple[str, Any]) -> None:
    """Refuse a value that is none of the choices of a literal type.

    Raises:
        ValueError: Naming the argument.

    Example:
        >>> from typing import Literal
        >>> check_choices(precision=("int8", Literal["fp16", "bf16"]))
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `precision` to be one of ['bf16', 'fp16'], but got 'int8'
    """
    for name, (value, kind) in arguments.items():
        if value not in get_args(kind):
            raise ValueError(f"Expected argument `{name}` to be one of {sorted(get_args(kind))}, but got {value!r}")


def check_texts(**values: object) -> None:
    """Refuse arguments that are neither text nor a list of it; None is an argument that was not given.

    Raises:
        TypeError: Naming the argument.

    Example:
        >>> check_texts(under=[None])
        Traceback (most recent call last):
            ...
        TypeError: Expected `under` to be text or a list of it, but got [None].
    """
    for name, value in values.items():
        given = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(each, str) for each in given):
            raise TypeError(f"Expected `{name}` to be text or a list of it, but got {value!r}.")


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not known, and suggest the nearest ones.

    Args:
        kind: What the names are, with its article.
        names: What was given.
        known: What could have been given.

    Raises:
        ValueError: For the first unknown one.

    Example:
        >>> check_known("a target", ["emulated-fp61"], ["emulated-fp16", "torch-fp32"])
        Traceback (most recent call last):
            ...
        ValueError: Expected a target out of ['emulated-fp16', 'torch-fp32'], but got 'emulated-fp61'. Did you mean \
'emulated-fp16'?
    """
    choices = list(known)
    for name in names:
        if name not in choices:
            raise ValueError(f"Expected {kind} out of {choices}, but got {name!r}.{did_you_mean(name, choices)}")


def check_file(what: str, path: str | Path | None) -> None:
    """Refuse a path of something that is read where there is no file, or none that may be read; None is no path.

    Args:
        what: What the file is, with its article.
        path: Where it should be.

    Raises:
        OSError: Saying so.

    Example:
        >>> check_file("a checkpoint", "/nowhere/last.ckpt")
        Traceback (most recent call last):
            ...
        FileNotFoundError: Expected a checkpoint at /nowhere/last.ckpt, but there is no such file.
    """
    if path is None:
        return
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected {what} at {path}, but there is no such file.")
    if Path(path).is_dir():
        raise IsADirectoryError(f"Expected {what} at {path}, but it is a folder.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"Expected {what} at {path}, but this user may not read it.")


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something, or a file in its place.

    Raises:
        ValueError: If it is neither missing nor empty.

    Example:
        >>> check_new_folder(Path(__file__))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected a new or an empty folder, but got ... Name another with --output.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"Expected a new or an empty folder, but got {folder}. Name another with --output.")


def check_output_folder(path: str | Path) -> None:
    """Refuse a folder that results could not be written into, before the work for them begins; makes nothing.

    Raises:
        OSError: Saying why.

    Example:
        >>> check_output_folder("/dev/null/results")
        Traceback (most recent call last):
            ...
        NotADirectoryError: Expected a folder for the results at /dev/null/results, but /dev/null is no folder.
    """
    what = f"Expected a folder for the results at {path}"
    there = next(each for each in (Path(path), *Path(path).absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise NotADirectoryError(f"{what}, but {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{what}, but {there} may not be written.")
