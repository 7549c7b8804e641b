"""Which of a run's checkpoints is best, or last, by what ModelCheckpoint wrote into them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_robust.suggest import did_you_mean, first_of

CHECKPOINTS = "checkpoints"
"""The folder of a run that Lightning keeps them in."""
_LAST = re.compile(r"last(-v\d+)?")
_BEST = re.compile(r"best(-v\d+)?")
_TOLD = 8


class _Keeper(NamedTuple):
    """What a ModelCheckpoint says of its best file."""

    name: str
    monitor: str | None
    score: float | None

    def __str__(self) -> str:
        score = "" if self.score is None else f" {self.score:.4g}"
        return f"best {self.monitor}{score}" if self.monitor else "the newest, no metric is monitored"


def is_checkpoint(path: Path) -> bool:
    """Whether this is a file, or a folder with the parts of a sharded checkpoint.

    Example:
        >>> is_checkpoint(Path("/nowhere"))
        False
    """
    return path.is_file() or (path / ".metadata").is_file()


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run: in its folder ``checkpoints``, else in the folder itself.

    Example:
        >>> checkpoints_of(Path("/nowhere"))
        []
    """
    places = (folder / CHECKPOINTS, folder)
    found = ([path for path in sorted(place.glob("*.ckpt")) if is_checkpoint(path)] for place in places)
    return next(filter(None, found), [])


def choose_checkpoint(folder: Path, name: str) -> tuple[Path, str]:
    """The checkpoint of a run that is meant, and why it is that one.

    Args:
        folder: Of a run that has checkpoints.
        name: ``"best"``, ``"last"``, or a file in the folder or beside its checkpoints, with its ending or without.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If not one of them is best.
    """
    files = checkpoints_of(folder)
    if name == "best":
        return _best(files)
    if name == "last":
        return _last(files)
    places = (folder / name, files[0].parent / name, files[0].parent / f"{name}.ckpt", Path(name))
    if (path := next(filter(is_checkpoint, places), None)) is not None:
        return path, ""
    names = [path.name for path in files]
    hint = did_you_mean(name, names, 1)
    raise FileNotFoundError(
        f"Expected best, last or a checkpoint of {folder}, but got {name!r}. There are: "
        f"{first_names(files, files[0].parent)}.{hint}"
    )


def first_names(paths: Sequence[Path], folder: Path) -> str:
    """The first of some files, as they are called in a folder, and how many more there are.

    Example:
        >>> first_names([Path("runs/a"), Path("runs/b")], Path("runs"))
        'a, b'
    """
    return first_of((path.relative_to(folder) for path in paths), _TOLD)


def _last(files: Sequence[Path]) -> tuple[Path, str]:
    if last := [path for path in files if _LAST.fullmatch(path.stem)]:
        return max(last, key=_age), "last"
    return max(files, key=_age), "the newest, none is named last"


def _best(files: Sequence[Path]) -> tuple[Path, str]:
    """The only one, or the one that a ModelCheckpoint says, or the one that is called best."""
    if len(files) == 1:
        return files[0], "the only one"
    names = {path.name: path for path in files}
    found = _keepers(files)
    called = {path.name: "by its name" for path in files if _BEST.fullmatch(path.stem)}
    reasons = found if found else called
    if len(reasons) == 1:
        ((name, reason),) = reasons.items()
        return names[name], str(reason)
    told = "; ".join(f"{name} ({reason})" for name, reason in reasons.items()) or first_names(files, files[0].parent)
    doubt = "several are" if found else "no ModelCheckpoint says which it is"
    raise ValueError(f"Expected one best checkpoint in {files[0].parent}, but {doubt}: {told}. Name one with --ckpt.")


def _keepers(files: Sequence[Path]) -> dict[str, _Keeper]:
    """Name of a best file -> the ModelCheckpoint that says so, by its newest word; those that monitor come first.

    The paths that they wrote are those of the machine and the folder of the training, so that only names are taken.
    """
    names = {path.name for path in files}
    newest: dict[str, _Keeper] = {}
    for path in sorted(files, key=_age):
        newest.update((key, keeper) for key, keeper in _keepers_in(path) if keeper.name in names)
    monitored = {keeper.name: keeper for keeper in newest.values() if keeper.monitor}
    others = {keeper.name: keeper for keeper in newest.values() if not _LAST.fullmatch(Path(keeper.name).stem)}
    return monitored or others


def _content_of(path: Path) -> Mapping[str, Any]:
    from lightning_robust.harness.checkpoints import read_checkpoint  # which imports torch

    return read_checkpoint(path)


def _age(path: Path) -> tuple[int, int]:
    """The step that a file was written at, and the time of writing, which a copy may have lost."""
    step = _content_of(path).get("global_step")
    return (step if isinstance(step, int) else -1), path.stat().st_mtime_ns


def _keepers_in(path: Path) -> Iterator[tuple[str, _Keeper]]:
    """The state of every ModelCheckpoint in a file."""
    callbacks = _content_of(path).get("callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and state.get("best_model_path"):
            score = state.get("best_model_score")
            name = re.split(r"[/\\]", str(state["best_model_path"]))[-1]
            yield str(key), _Keeper(name, state.get("monitor"), None if score is None else float(score))
