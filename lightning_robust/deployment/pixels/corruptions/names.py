"""The names of the corruptions, ``fog`` or ``fog@3``, known before torch is imported."""

from __future__ import annotations

from lightning_robust.checks import check_known

SEVERITIES = (1, 2, 3, 4, 5)
MIDDLE = 3
CORRUPTION_FAMILIES: dict[str, tuple[str, ...]] = {
    "blur": ("motion_blur", "defocus_blur"),
    "weather": ("fog", "snow", "rain"),
    "light": ("glare", "low_light"),
    "lens": ("dirt", "drops"),
    "time": ("exposure_lag", "rolling_shutter", "frame_loss"),
}
"""The kinds of corruption and their names."""
CORRUPTION_NAMES = tuple(name for names in CORRUPTION_FAMILIES.values() for name in names)
ALL_CORRUPTIONS = "corruptions"
"""Stands for all of them."""
_KNOWN = (*CORRUPTION_NAMES, *CORRUPTION_FAMILIES, ALL_CORRUPTIONS)


def is_corruption(name: str) -> bool:
    """Whether a name, with a severity or without, is that of corruptions.

    Example:
        >>> is_corruption("fog@3"), is_corruption("weather"), is_corruption("jpeg_90")
        (True, True, False)
    """
    return name.partition("@")[0] in _KNOWN


def split_severity(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The corruptions and the severities that one name stands for.

    Raises:
        ValueError: For an unknown name, of which the message names the nearest, or a severity outside of 1 to 5.

    Example:
        >>> split_severity("fog@3"), split_severity("blur")
        ((('fog',), (3,)), (('motion_blur', 'defocus_blur'), (1, 2, 3, 4, 5)))
    """
    base, at, severity = name.partition("@")
    check_known("a corruption", [base], _KNOWN)
    if at and severity not in map(str, SEVERITIES):
        raise ValueError(f"Expected a severity from 1 to 5, as in '{base}@3', but got {name!r}.")
    names = CORRUPTION_NAMES if base == ALL_CORRUPTIONS else CORRUPTION_FAMILIES.get(base, (base,))
    return names, (int(severity),) if at else SEVERITIES
