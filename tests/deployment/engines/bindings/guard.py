"""Objects that pass for those of NVIDIA's classes: they have its attributes, and take what its methods take.

What a class of the bindings has, and of which types its methods take and return, is read off the class itself, whose
docstrings carry the signatures (pybind11 writes them). An attribute that the class of this version lacks is missing
here too, and an argument of another type is refused, as the bindings do. So code that runs on these objects names and
calls nothing that the real ones have not. What a method does is the stand-in's own.
"""

import functools
import json
import os
import re

LIBRARY = None
"""The bindings; set by :func:`install`."""

_PLAIN = {"str": str, "bool": bool, "int": int, "float": float, "tuple": tuple, "list": list, "None": type(None)}
_ABSENT = object()


def install(library, classes):
    """Hold these classes to those of the same names in the bindings; returns what this version of them lacks."""
    global LIBRARY
    LIBRARY = library
    return [missing for cls in classes for missing in _hold(cls, getattr(library, cls.__name__))]


def _hold(cls, real):
    cls.real = real
    lacking = []
    for name, value in list(vars(cls).items()):
        if name.startswith("_") and name not in ("__init__", "__getitem__", "__len__", "__enter__"):
            continue
        if name != "__init__" and isinstance(value, (property, type(install))) and not hasattr(real, name):
            delattr(cls, name)
            lacking.append(f"{real.__name__}.{name}")
        elif isinstance(value, type(install)):
            setattr(cls, name, _checked(real, name, value))
    return lacking


def _checked(real, name, function):
    known = signatures(getattr(real, name).__doc__ or "", name)

    @functools.wraps(function)
    def call(self, *args, **kwargs):
        if not known:  # made by the library alone, or documented without types
            return function(self, *args, **kwargs)
        taken = next((result for names, result in known if _takes(names, args, kwargs)), _ABSENT)
        if taken is _ABSENT:
            raise TypeError(f"{real.__name__}.{name}(): incompatible arguments {args} {kwargs}, takes {known}")
        if not name.startswith("__") or name == "__init__":
            record(f"{real.__name__}.{name}", *args, *kwargs.values())
        answer = function(self, *args, **kwargs)
        if answer is not None and not fits(taken, answer):
            raise TypeError(f"{real.__name__}.{name}(): returned {answer!r}, which is no {taken}")
        return answer

    return call


def signatures(text, name):
    """The signatures in a docstring of pybind11's: the (name, type, optional) of the arguments, and the result."""
    found = re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", text, re.MULTILINE)
    return [(_arguments(arguments)[1:], result) for arguments, result in found]


def _arguments(text):
    parts = re.split(r", (?=\w+: )", text)
    pairs = [part.split(": ", 1) for part in parts]
    return [(name, kind.split(" = ")[0], " = " in kind) for name, kind in pairs]


def _takes(names, args, kwargs):
    given = dict(zip([name for name, *_ in names], args, strict=False)) | kwargs
    known = {name: kind for name, kind, _ in names}
    needed = {name for name, _, optional in names if not optional}
    if len(args) > len(names) or not needed <= given.keys() <= known.keys():
        return False
    return all(fits(known[name], value) for name, value in given.items())


def fits(kind, value):
    """Whether pybind11 takes a value for an argument that its docstring says is of this type."""
    container = re.fullmatch(r"(?:collections\.abc\.)?(list|Sequence|tuple)\[(.*)\]", kind)
    if container:
        items = container[2].split(", ") if container[1] == "tuple" else [container[2]] * len(value)
        return isinstance(value, (list, tuple)) and all(map(fits, items, value))
    name = re.split(r"\.|::", kind)[-1]
    if name in _PLAIN:
        return isinstance(value, _PLAIN[name])
    if name == "object":
        return True
    if name == "SupportsInt":
        return hasattr(value, "__index__")
    if name == "Buffer":
        return memoryview(value) is not None
    if name == "Dims":
        return isinstance(value, (tuple, list, LIBRARY.Dims))
    name = {"IParserError": "ParserError"}.get(name, name)
    if not hasattr(LIBRARY, name):
        raise NotImplementedError(f"the stand-in does not know the type {kind}")
    return isinstance(value, getattr(LIBRARY, name))


def record(call, *arguments):
    """Write a call and its arguments into the file of calls."""
    with open(os.environ["STAND_IN_CALLS"], "a") as file:
        file.write(json.dumps([call, *map(_readable, arguments)]) + "\n")


def _readable(value):
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, (tuple, list, LIBRARY.Dims)):
        return [_readable(item) for item in value]
    return value.name if hasattr(type(value), "__members__") else type(value).__name__


class Fake:
    """The base of the stand-in's classes; each is named after the real one and passes for it with isinstance."""

    @property
    def __class__(self):
        return type(self).real

    def __getattr__(self, name):
        attribute = getattr(type(self).real, name, _ABSENT)
        if attribute is _ABSENT:
            raise AttributeError(f"{type(self).real!r} object has no attribute {name!r}")
        if not isinstance(attribute, property):
            raise NotImplementedError(f"the stand-in has no {type(self).real.__name__}.{name}")
        kind = re.search(r"-> (.+)$", attribute.fget.__doc__ or "-> None", re.MULTILINE)[1]
        return _nothing(kind)

    def __setattr__(self, name, value):
        if not name.startswith("_"):
            setter = getattr(getattr(type(self).real, name, None), "fset", None)
            if setter is None:
                raise AttributeError(f"{type(self).real.__name__}.{name} cannot be set")
            kind = re.search(r"arg1: (.+)\) -> None", setter.__doc__)[1]
            if not fits(kind, value):
                raise TypeError(f"{type(self).real.__name__}.{name}: {value!r} is no {kind}")
            record(f"{type(self).real.__name__}.{name}", value)
        object.__setattr__(self, name, value)


def _nothing(kind):
    """The value of a property that the stand-in does not fill: 0, False, "", no object, or the first of its kind."""
    name = re.split(r"\.|::", kind)[-1]
    if name in _PLAIN:
        return _PLAIN[name]()
    members = getattr(getattr(LIBRARY, name, None), "__members__", {})
    return next(iter(members.values()), None)
