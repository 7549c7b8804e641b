"""What jsonargparse complains about over several lines, as one line in the words of the one who wrote the arguments."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_robust.suggest import did_you_mean

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_VALUE = re.compile(r"(?:.*Given value|Got value): (.*)", re.DOTALL)
_TYPES = re.compile(r"Subtypes: \[(.*)\]")
_ERRORS = re.compile(r"\n *Errors:\n(.*?)(?=\n *Given value type:|\Z)", re.DOTALL)
_CLASS = re.compile(r"<class '(?:(.*)\.)?(\w+)'>")
_PATH = re.compile(r"Problem with given class_path '([^']+)':\s*(.*)", re.DOTALL)
_OF_TYPES = re.compile(
    r"Expected an? (<class|[\w.]+\[|dot import|path but)|Not a valid subclass|Does not validate|- Expected a path"
)
_NESTED = re.compile(r"NestedArg\(key='(\w+)', val='(.*)'\)")
_SHORT = 80
_WORDS = {
    "bool": ["true", "false"],
    "int": ["an integer"],
    "float": ["a number"],
    "str": ["text"],
    "NoneType": ["null"],
    "list": ["a list"],
    "Iterable": ["a list"],
    "dict": ["a mapping"],
}


def one_complaint(message: str, line: Sequence[str] = ()) -> str:
    r"""The message of a parser in one line.

    Args:
        message: Of an error of jsonargparse.
        line: The arguments, which say what a key belongs to that the message names without its parents.

    Example:
        >>> message = 'Parser key "kind":\n  Expected a typing.Literal["ema", "lawa"]. Got value: em'
        >>> print(one_complaint(message, ["--swa.kind=em"]))
        Expected `swa.kind` to be "ema" or "lawa", but got em. Did you mean 'ema'?
    """
    found, value = _KEY.match(message), _VALUE.search(message)
    where = f"`{whole_key(found[1], line)}`" if found else ""
    body = message[found.end() :] if found else message
    given = " ".join(value[1].split()) if value else ""
    reasons = list(_reasons(body))
    if reasons:
        named = given if len(given) <= _SHORT and given not in reasons[-1] else ""
        return ": ".join(filter(None, [where, named, reasons[-1]]))
    kinds = _kinds(body)
    return _expectation(where, kinds, given) if kinds and given else " ".join(message.split())


def _expectation(where: str, kinds: Sequence[str], given: str) -> str:
    """What could have been given in place of a value, and what it may have meant."""
    if nested := _NESTED.match(given):
        key = where.strip("`")
        return (
            f"Expected names for all arguments, as --{key}.method=... --{key}.{nested[1]}={nested[2]}, but got a word."
        )
    words = list(dict.fromkeys(word for kind in kinds for word in _type_words(kind)))
    expected = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    hint = did_you_mean(given, [choice for kind in kinds for choice in _choices(kind)], 1)
    return f"Expected {where or 'a value'} to be {expected}, but got {given[:_SHORT]}.{hint}"


def whole_key(key: str, line: Sequence[str]) -> str:
    """A key with its parents, as the arguments write it.

    Example:
        >>> whole_key("kind", ["--swa.kind=em", "--swa.start=2"]), whole_key("kind", [])
        ('swa.kind', 'kind')
    """
    written = (arg.lstrip("-").split("=", 1)[0] for arg in line if arg.startswith("--"))
    return next((name for name in written if name == key or name.endswith(f".{key}")), key)


def _reasons(body: str) -> Iterator[str]:
    """What the message says beside the types that were expected."""
    path = _PATH.match(body)
    errors = _ERRORS.search(body)
    if path:
        yield _class_reason(path[1], path[2])
    elif errors:
        for error in re.split(r"^- ", textwrap.dedent(errors[1]), flags=re.MULTILINE):
            yield from _reasons(error.strip())
    elif body and not _OF_TYPES.match(body.strip()):
        yield " ".join(_KEY.sub(lambda key: f"`{key[1]}`: ", body).split())


def _class_reason(path: str, reason: str) -> str:
    """Why a class of the user is none, and what to do where it cannot be imported."""
    reason = one_complaint(reason)
    if not re.match(r"No module named|module |cannot import|Expected a dot", reason):
        return f"{path}: {reason}"
    module = sys.modules.get(path.rsplit(".", 1)[0])
    told = f"{path} cannot be imported: {reason.rstrip('.')}"
    if module is not None and module.__file__:
        name = path.rsplit(".", 1)[1]
        return f"{told}; the module is {module.__file__}.{did_you_mean(name, sorted(vars(module)), 1)}"
    return f"{told}; modules are looked for in {Path.cwd()} and where Python's packages are, see PYTHONPATH."


def _kinds(body: str) -> list[str]:
    types = _TYPES.search(body)
    if types:
        return re.split(r", (?![^\[]*\])", types[1])
    single = re.search(r"Expected an? (.*?)\. Got value", body, re.DOTALL)
    return [single[1]] if single else []


def _type_words(kind: str) -> list[str]:
    """What a type takes, in words.

    Example:
        >>> _type_words("<class 'bool'>"), _type_words("list[str]"), _type_words("<class 'torch.optim.SGD'>")
        (['true', 'false'], ['a list'], ['a class path', 'arguments of SGD'])
    """
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if literal:
        return literal[1].split(", ")
    known = _CLASS.fullmatch(kind)
    name = known[2] if known else kind.split("[")[0].rsplit(".", 1)[-1]
    return _WORDS.get(name, ["a class path", f"arguments of {name}"])


def _choices(kind: str) -> list[str]:
    """What can be written for a type, as far as that is a short list: literals, or the classes that are known."""
    known = _CLASS.fullmatch(kind)
    if known and known[2] == "bool":
        return ["true", "false"]
    if known and known[1]:
        base = getattr(sys.modules.get(known[1]), known[2], None)
        return [cls.__name__ for cls in _subclasses(base)] if isinstance(base, type) else []
    return re.findall(r"['\"]([^'\"]+)['\"]", kind)


def _subclasses(base: type) -> Iterator[type]:
    classes: list[type] = base.__subclasses__()
    for cls in classes:
        yield cls
        yield from _subclasses(cls)
