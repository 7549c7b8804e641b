"""What the name of a metric says: the group that it belongs to, the better direction, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_robust.comparison.finished_runs import FAMILY, SECONDS, WORST
from lightning_robust.harness.directions import Mode, named_direction, words_of
from lightning_robust.suggest import did_you_mean, first_of


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that answer one question.

    Args:
        name: Its heading.
        pattern: Regular expression that finds its tags.
        source: Which switch or command produces it.
        mode: The better direction of all its metrics; None where it depends on the metric.
    """

    name: str
    pattern: str
    source: str
    mode: Mode | None = None


_HELD_OUT = r"^(val|valid|validation|test)[/_]"
_PARITY = "`deployment_parity: true` in a run, or `lightning-robust parity --ckpt ... --output RUN/parity` after it"
GROUPS: tuple[MetricGroup, ...] = (
    MetricGroup(
        "clean", _HELD_OUT, "a metric that `validation_step` logs under a name that begins with val, such as `val/acc`"
    ),
    MetricGroup(
        "attacked",
        rf"^adversarial/val_|{_HELD_OUT}.*(robust|attack|fgsm|pgd|(^|[/_])adv)",
        "`robust_validation: true` in a run, which attacks at validation and leaves training alone",
    ),
    MetricGroup(
        "corrupted",
        rf"(^|[/_])corrupt|^wise_ft/shifted$|{_HELD_OUT}(.*[/_])?shift",
        "`robust_validation: {under: corruptions}` in a run, or a metric that is named `val/..._shifted` or "
        "`val/..._corrupted`",
    ),
    MetricGroup("preprocessing", rf"^{WORST}$|^{FAMILY}|^attribution/preprocessing$", _PARITY, "min"),
    MetricGroup("fp16", r"^parity/[^/]*-fp16/", _PARITY, "min"),
    MetricGroup("tf32", r"^parity/[^/]*-tf32/", _PARITY, "min"),
    MetricGroup(
        "recording",
        r"^replay/(torch-fp32|[^/]*-fp16)/(swing|bend)$|recording",
        "`lightning-robust replay --ckpt ... --frames ... --output RUN/replay`",
    ),
    MetricGroup("time", rf"^{SECONDS}$|^train(ing)?[/_](time|seconds)$", "TensorBoard's event files", "min"),
    MetricGroup(
        "memory",
        r"(^|[/_.])memory([/_.]|$)|allocated_bytes\.all\.peak",
        "Lightning's `DeviceStatsMonitor` on a GPU, or any scalar with memory in its name",
    ),
)
"""The groups in the order of the table's columns."""

# clean fits whatever held-out data gave, so it is asked last
_QUESTIONS = (*GROUPS[1:], GROUPS[0])
_OTHER = MetricGroup("other", "", "")
_DISTANCES = re.compile(r"^(sensitivity|attribution)/")
_UNDER = re.compile("^corruption/[^/]+/")  # frame_loss is no loss
_PREFERRED: dict[str, tuple[str, ...]] = dict.fromkeys(("fp16", "tf32"), (r"_p99$", r"/rel_l2$"))
_PREFERRED |= {"corrupted": (r"^corruption/(mce|mean_error)$",)}
_TOLD = 40
_FEW = 4  # families of preprocessing that have a column each, as in runs that measure what a fingerprint found


@dataclass(frozen=True)
class Column:
    """A metric of the table.

    Args:
        tag: As logged.
        mode: Which direction is better; None where that is not known, and nothing is marked.
        group: Name of one of :data:`GROUPS`, or ``"other"``.
    """

    tag: str
    mode: Mode | None
    group: str

    @classmethod
    def of(cls, tag: str, mode: Mode | None = None) -> Column:
        """The column of a tag, with the direction that its name says unless one is named.

        Example:
            >>> Column.of("val/acc"), Column.of("val/depth", "min")
            (Column(tag='val/acc', mode='max', group='clean'), Column(tag='val/depth', mode='min', group='clean'))
        """
        return cls(tag, mode or direction(tag), group_of(tag))

    @property
    def title(self) -> str:
        """The tag with an arrow towards the better values."""
        return self.tag + {"max": " ↑", "min": " ↓", None: ""}[self.mode]


def group_of(tag: str) -> str:
    """The group that a tag belongs to.

    Example:
        >>> group_of("val/acc"), group_of("adversarial/val_acc@0.1"), group_of("parity/emulated-fp16/rel_l2")
        ('clean', 'attacked', 'fp16')
    """
    return _find_group(tag).name


def direction(tag: str) -> Mode | None:
    """Whether larger or smaller is better, as far as whole words of the name say.

    Example:
        >>> direction("val/acc"), direction("val/lateral_px"), direction("val/depth"), direction("val/accident_rate")
        ('max', 'min', None, None)
    """
    mode = "min" if _DISTANCES.search(tag) else _find_group(tag).mode
    return mode or named_direction(_UNDER.sub("", tag))


def _find_group(tag: str) -> MetricGroup:
    return next((group for group in _QUESTIONS if re.search(group.pattern, tag)), _OTHER)


def default_columns(tags: Sequence[str]) -> list[Column]:
    """Of many metrics those that a reader wants first, group by group."""
    return [Column.of(tag) for group in GROUPS for tag in _select_tags(group, tags)]


def _select_tags(group: MetricGroup, tags: Sequence[str]) -> list[str]:
    """The tags of a group: metrics rather than losses, and distances in the task's units rather than relative ones."""
    members = _without_many_families([tag for tag in tags if group_of(tag) == group.name])
    for pattern in _PREFERRED.get(group.name, ()):
        if kept := _keep(pattern, members):
            return kept
    if group.name in ("fp16", "tf32"):
        return []
    if group.name in ("clean", "attacked"):
        return [tag for tag in members if not {"loss", "losses"} & {*words_of(tag)}] or members
    return members


def _without_many_families(tags: Sequence[str]) -> list[str]:
    families = _keep(f"^{FAMILY}", tags)
    return [tag for tag in tags if len(families) <= _FEW or tag not in families]


def _keep(pattern: str, tags: Sequence[str]) -> list[str]:
    return [tag for tag in tags if re.search(pattern, tag)]


def parse_columns(metrics: str, tags: Sequence[str]) -> list[Column]:
    """Read ``"tag:max,tag:min,..."``.

    Raises:
        ValueError: For a metric that no run logged, and where there is none.
    """
    columns = []
    for part in _parts(metrics):
        mode: Mode | None = "max" if part.endswith(":max") else "min" if part.endswith(":min") else None
        tag = part.removesuffix(f":{mode}")
        _refuse_unlogged(tag, part, "as tag:max or tag:min", tags)
        columns.append(Column.of(tag, mode))
    if not columns:
        raise ValueError(f"Expected metrics as tag:max or tag:min, but got {metrics!r}.")
    return list(dict.fromkeys(columns))


def with_modes(columns: Sequence[Column], modes: str, tags: Sequence[str]) -> list[Column]:
    """Columns with the directions of ``"tag=max,tag=min,..."``; a metric that is not among them is added.

    Raises:
        ValueError: For a metric that no run logged, another word than max and min, and where there is none.

    Example:
        >>> with_modes([], "val/depth=max", ["val/depth"])
        [Column(tag='val/depth', mode='max', group='clean')]
    """
    told: dict[str, Mode] = {}
    for part in _parts(modes):
        tag, _, word = part.rpartition("=")
        if word not in ("max", "min"):
            raise ValueError(f"Expected directions as tag=max or tag=min, but got {part!r}.")
        _refuse_unlogged(tag, part, "as tag=max or tag=min", tags)
        told[tag] = "max" if word == "max" else "min"
    if not told:
        raise ValueError(f"Expected directions as tag=max or tag=min, but got {modes!r}.")
    shown = [Column.of(column.tag, told.pop(column.tag, column.mode)) for column in columns]
    return [*shown, *(Column.of(tag, mode) for tag, mode in told.items())]


def _parts(text: str) -> Iterator[str]:
    return filter(None, map(str.strip, text.split(",")))


def _refuse_unlogged(tag: str, part: str, form: str, tags: Sequence[str]) -> None:
    if tag not in tags:
        hint = did_you_mean(tag, tags, 1)
        raise ValueError(
            f"Expected metrics that the runs logged, {form}, but got {part!r}. There are: "
            f"{first_of(tags, _TOLD, 'none')}.{hint}"
        )
