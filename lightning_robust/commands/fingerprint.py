"""``lightning-robust fingerprint``: what differs between training's pictures and the deployed side's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning_robust.checks import check_file
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate

_NAMES = {"yaml": "preprocessing.yaml", "code": "deployed.py"}


def fingerprint(
    trained: str,
    deployed: str,
    *,
    key: str | None = None,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    emit: str | None = None,
    gate: Gate,
) -> Judgement:
    """Say what the deployed side's preprocessing does differently, from the same frames as both sides feed them.

    Exit status: 0 nothing differs, or no more than the budget allows (fingerprint/distance in levels, or
    fingerprint/<cause>: 1), 1 something does, 2 the pictures do not tell.

    Args:
        trained: Training's pictures, N x C x H x W: .npy, .npz, one picture, or a folder of pictures (RGB, in the
            order of their names).
        deployed: The deployed side's, in the same form, for the same frames in the same order.
        key: Which array of an .npz file; not needed where there is one, or one named input/... .
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; usual values are recognised.
        std: Standard deviation that the pixels were normalised with; usual values are recognised.
        emit: A new file for what was found: the settings that train against it (.yaml, for fit -c), or the transform
            itself (.py). "yaml" and "code" are preprocessing.yaml and deployed.py.
        gate: The budget.
    """
    for path in (trained, deployed):
        if not Path(path).is_dir():
            check_file("pictures", path)
    output = None if emit is None else _check_new(_NAMES.get(emit, emit))

    from lightning_robust.commands.work.fingerprint import read_both, write_found
    from lightning_robust.deployment.fingerprint.judge import judge_fingerprint
    from lightning_robust.deployment.fingerprint.search import fingerprint as fingerprint_of

    sides, remark = read_both(trained, deployed, key)
    found = fingerprint_of(*sides, mean=mean, std=std)
    print("\n".join(filter(None, [str(found), remark])))
    judgement = judge_fingerprint(found, gate.limits, gate.source)
    if output is None:
        return judgement
    return replace(judgement, remarks=(write_found(found, output, gate.line, sides, (mean, std)),))


def _check_new(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".py"):
        raise ValueError(f"Expected --emit to be a file that ends in .yaml or .py, 'yaml' or 'code', but got {name!r}.")
    if path.exists():
        raise FileExistsError(f"Expected --emit to be a new file, but {name} exists. Remove it, or name another.")
    if not path.absolute().parent.is_dir():
        raise NotADirectoryError(f"Expected --emit in a folder, but there is no {path.parent}.")
    return path
