"""Public names that are imported when they are first asked for, so that importing a package imports nothing heavy."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], Iterable[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package that imports its public names under ``TYPE_CHECKING``.

    Type checkers and editors read those imports as they stand. At run time the first use of a name runs its import
    (PEP 562), and later uses find it in the package.

    Args:
        package: Its ``__name__``; the source has to be there, as it is in every wheel.

    Example:
        >>> lazy_names("lightning_robust")[2][:2]
        ['AdversarialCallback', 'DatapathCallback']
    """
    namespace = vars(sys.modules[package])
    source = Path(namespace["__file__"]).read_text(encoding="utf-8")  # pytest's loader of plugins cannot give it
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    homes = {name.name: str(node.module) for node in imports for name in node.names if name.name == name.asname}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = getattr(importlib.import_module(homes[name]), name)
        return namespace[name]

    return find, lambda: sorted({*namespace, *homes}), [*homes]
