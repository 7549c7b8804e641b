"""One number against its limit, and the judgement on all numbers of a command: within, beyond, or not measured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_robust.suggest import first_of

Outcome = Literal["within", "beyond", "unmeasured"]
EXIT_CODES: dict[Outcome, int] = {"within": 0, "beyond": 1, "unmeasured": 2}
"""The exit status that a pipeline reads."""
ANYTHING = "anything"
"""What could not be measured where there is no number at all."""
_UNITS = {"px", "ms", "levels"}


@dataclass(frozen=True)
class Check:
    """One number, and the limit that it is held against.

    The value decides. Where the limit lies in the interval of the value, more samples could decide otherwise: that is
    said in words, and changes nothing. Metrics that have a sign are held to their :func:`size`.

    Args:
        subject: Whose number it is: a target such as ``"emulated-fp16"``, a perturbation; empty for that of the whole.
        metric: Its name, as in ``"<subject>/<metric>"`` of a budget.
        value: The number; NaN where it could not be measured.
        limit: The largest that is allowed; None where nobody set one.
        low: Lower end of its 95 % interval; NaN where that is not known.
        high: Upper end.
        place: Where it comes from: a layer and its line, a frame.
        note: Why it could not be measured, or what else to know of it.
        case: What it was measured on, where there are several: a case of a case book, a run.
        unit: What it is counted in; read from the name of the metric where it is empty.
        demanded: Whether it counts that it could not be measured: somebody asked for it. What has a limit is demanded.
        sentence: What is said of it in place of the number and its limit.

    Example:
        >>> check = Check("emulated-fp16", "lateral_px_p99", 0.63, 0.5, 0.55, 0.71, place="detector.py:92 Sub")
        >>> check.status, check.is_uncertain
        ('beyond', False)
        >>> print(check)
        emulated-fp16/lateral_px_p99 is 0.63 px (0.55 to 0.71), allowed 0.5
    """

    subject: str
    metric: str
    value: float
    limit: float | None = None
    low: float = math.nan
    high: float = math.nan
    place: str = ""
    note: str = ""
    case: str = ""
    unit: str = ""
    demanded: bool = False
    sentence: str = ""

    @property
    def key(self) -> str:
        """Subject and metric, as a budget names them."""
        return f"{self.subject}/{self.metric}" if self.subject else self.metric

    @property
    def name(self) -> str:
        """The key, after the case that it was measured on."""
        return f"{self.case}: {self.key}" if self.case else self.key

    @property
    def status(self) -> Outcome:
        """Whether the value keeps the limit; without a limit, whether there is a value."""
        if math.isnan(self.value):
            return "unmeasured"
        return "within" if self.limit is None or self._keeps(self.value, self.limit) else "beyond"

    @property
    def is_demanded(self) -> bool:
        """Whether somebody wants to know this number."""
        return self.demanded or self.limit is not None

    @property
    def is_uncertain(self) -> bool:
        """Whether the limit lies in the interval of the value."""
        if self.limit is None or math.isnan(self.value) or math.isnan(self.low) or math.isnan(self.high):
            return False
        limit = self.limit
        sides = {self._keeps(end, limit) for end in (self.low, self.value, self.high)}
        return len(sides) == 2

    @property
    def load(self) -> float:
        """How much of its limit the value takes: above 1 it lies beyond; -1 without a limit or a value.

        Example:
            >>> Check("a", "p99", 0.5, 2.0).load, Check("a", "p99", 0.5, 0.0).load
            (0.25, inf)
        """
        if self.limit is None or math.isnan(self.value):
            return -1.0
        taken = max(size(self.metric, self.value), 0.0)
        if self.limit == 0:
            return math.inf if taken else 0.0
        return taken / self.limit

    def _keeps(self, value: float, limit: float) -> bool:
        return size(self.metric, value) <= limit

    def told(self) -> str:
        """The number with its unit and its interval.

        Example:
            >>> Check("emulated-fp16", "latency_ms", 12.345).told()
            '12.3 ms'
        """
        unit = self.unit or next((part for part in self.metric.split("_") if part in _UNITS), "")
        number = f"{_three_digits(self.value)} {unit}".strip()
        known = not (math.isnan(self.low) or math.isnan(self.high))
        return f"{number} ({_three_digits(self.low)} to {_three_digits(self.high)})" if known else number

    def __str__(self) -> str:
        """One clause for a verdict, without the place."""
        if math.isnan(self.value):
            return f"{self.name} ({self.note or 'there is no number'})"
        if self.sentence:
            return f"{self.case}: {self.sentence}" if self.case else self.sentence
        if self.limit is None:
            return f"{self.name} is {self.told()}"
        doubt = " (the limit lies within the interval: more samples would tell)" if self.is_uncertain else ""
        return f"{self.name} is {self.told()}, allowed {_three_digits(self.limit)}{doubt}"


@dataclass(frozen=True)
class Judgement:
    """What a command says of all its numbers, and the exit status that follows.

    One number beyond its limit and the whole is beyond (1), whatever could not be measured. Otherwise one number that
    was demanded and could not be measured, and nothing was decided (2). Otherwise it is within (0). Without any limit
    the numbers are told and the status is 0, but 2 where there is no number at all.

    Args:
        command: What judged: the name of the command.
        checks: The numbers.
        budget: Where the limits are from, in a few words: the file, the option.
        remarks: What else a reader should know, a sentence each.
        origin: What was measured, such as the digest of the weights.

    Example:
        >>> near, far = Check("emulated-fp16", "rel_l2", 4e-4, 1e-3), Check("tensorrt-fp16", "rel_l2", 2e-3, 1e-3)
        >>> judgement = Judgement("parity", (near, far), "parity.yaml")
        >>> judgement.status, judgement.exit_code
        ('beyond', 1)
        >>> print(judgement.text())
        verdict: beyond parity.yaml: tensorrt-fp16/rel_l2 is 0.002, allowed 0.001; 1 of 2 within
        >>> print(Judgement("parity", (near,), "parity.yaml").text())
        verdict: within parity.yaml: emulated-fp16/rel_l2 is 0.0004, allowed 0.001
        >>> print(Judgement("parity", (Check("emulated-fp16", "rel_l2", 4e-4),)).text())
        verdict: no budget was set, nothing was judged: emulated-fp16/rel_l2 is 0.0004
    """

    command: str
    checks: tuple[Check, ...] = ()
    budget: str = ""
    remarks: tuple[str, ...] = ()
    origin: str = ""

    @property
    def status(self) -> Outcome:
        """The outcome of all checks together."""
        if self.beyond:
            return "beyond"
        lost = bool(self.unmeasured) or not any(check.status == "within" for check in self.checks)
        return "unmeasured" if lost else "within"

    @property
    def exit_code(self) -> int:
        """0 within, 1 beyond, 2 could not be measured."""
        return EXIT_CODES[self.status]

    @property
    def beyond(self) -> list[Check]:
        """The numbers beyond their limits, the worst first."""
        found = [check for check in self.checks if check.status == "beyond"]
        return sorted(found, key=lambda check: -check.load)

    @property
    def unmeasured(self) -> list[Check]:
        """The numbers that were demanded and could not be measured."""
        return [check for check in self.checks if check.status == "unmeasured" and check.is_demanded]

    @property
    def judged(self) -> list[Check]:
        """The numbers that have a limit, the nearest to it first."""
        return sorted((check for check in self.checks if check.limit is not None), key=lambda check: -check.load)

    @property
    def headline(self) -> str:
        """The outcome in one sentence: the number that decided, its limit, its place."""
        if self.status == "beyond":
            return f"beyond {self.budget or 'its budget'}: {_decisive(self.beyond, self.judged)}"
        if self.status == "unmeasured":
            lost = self.unmeasured or list(self.checks)
            return f"could not measure {_decisive(lost, self.judged) or ANYTHING}"
        if self.judged:
            return f"within {self.budget or 'its budget'}: {_decisive(self.judged[:1], self.judged)}"
        return f"no budget was set, nothing was judged: {first_of(self._measured, 2)}"

    @property
    def _measured(self) -> list[Check]:
        return [check for check in self.checks if check.status != "unmeasured"]

    def text(self) -> str:
        """The line that a command prints last."""
        return f"verdict: {on_one_line('; '.join([self.headline, *self.remarks]))}"


def size(metric: str, value: float) -> float:
    """What is held against a limit: the size of a number, but of how much worse something is, whether it is at all.

    Args:
        metric: Its name, or a tag that ends with it.
        value: The number.

    Example:
        >>> size("lateral_px_bias", -0.5), size("boxes_map_worse", -0.5)
        (0.5, -0.5)
    """
    return value if metric.endswith("_worse") else abs(value)


def _decisive(named: Sequence[Check], judged: Sequence[Check]) -> str:
    """The first checks that decided, the place of the worst, and how many of all are within."""
    if not named:
        return ""
    first = named[0]
    parts = [first_of(named, 2)]
    if first.place:
        parts.append(f"worst at {first.place}" if first.status == "beyond" else f"most of it at {first.place}")
    within = sum(check.status == "within" for check in judged)
    if len(judged) > 1:
        parts.append(f"{within} of {len(judged)} within" if within < len(judged) else f"all {within} within")
    return "; ".join(parts)


def _three_digits(value: float) -> str:
    """A number in three significant digits, and all digits before the point.

    Example:
        >>> _three_digits(0.000123), _three_digits(181.52), _three_digits(5402.0), _three_digits(0.5)
        ('0.000123', '182', '5402', '0.5')
    """
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def on_one_line(text: str) -> str:
    """A text without line breaks and other control characters, which a file or a module may carry in its names."""
    return re.sub(r"\s+", " ", re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)).strip()
