"""``lightning-robust fingerprint``: what differs between training's pictures and the deployed side's."""

from __future__ import annotations

from lightning_robust.checks import check_file
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate


def fingerprint(
    trained: str,
    deployed: str,
    *,
    key: str | None = None,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    gate: Gate,
) -> Judgement:
    """Say what the deployed side's preprocessing does differently, from the same frames as both sides feed them.

    Exit status: 0 nothing differs, or no more than the budget allows (fingerprint/distance in levels, or
    fingerprint/<cause>: 1), 1 something does, 2 the pictures do not tell.

    Args:
        trained: Training's pictures, N x C x H x W: .npy, .npz, or one picture (RGB).
        deployed: The deployed side's, in the same form, for the same frames in the same order.
        key: Which array of an .npz file; not needed where there is one, or one named input/... .
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; usual values are recognised.
        std: Standard deviation that the pixels were normalised with; usual values are recognised.
        gate: The budget.
    """
    for path in (trained, deployed):
        check_file("pictures", path)

    from lightning_robust.commands.work.fingerprint import read_pictures
    from lightning_robust.deployment.fingerprint.judge import judge_fingerprint
    from lightning_robust.deployment.fingerprint.search import fingerprint as fingerprint_of

    found = fingerprint_of(read_pictures(trained, key), read_pictures(deployed, key), mean=mean, std=std)
    print(found)
    return judge_fingerprint(found, gate.limits, gate.source)
