"""A fixture for the user's own tests: ``def test_deploys(parity): parity(module, inputs).within("parity.yaml")``.

pytest loads this file at the start of every session where the package is installed: it imports nothing heavy, and what
measures is imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lightning_robust.gate.check import Judgement


@dataclass(frozen=True)
class MeasuredModule:
    """A module on its inputs; it is measured when it is held against a budget.

    Args:
        module: The module; the methods ``decode`` and ``moved`` of a LightningModule give metrics in the task's units.
        inputs: What its ``forward`` takes, at least two samples: a tensor, or a tuple of arguments.
        targets: Names such as ``"emulated-fp16"``; None for those that the budget limits.
        settings: As for :func:`~lightning_robust.measure_parity`, and ``build``, a
            :class:`~lightning_robust.deployment.engines.BuildSettings`.
    """

    module: Any
    inputs: Any
    targets: Sequence[str] | None
    settings: Mapping[str, Any]

    def within(self, budget: str | Path | Mapping[str, float]) -> Judgement:
        """Fail the test where a number is beyond its limit, or one that is limited could not be measured.

        A target that this machine cannot run fails the test too, and does not skip it: a gate that is skipped is open.
        The message says what to install, and of a number beyond its limit the layer and the line that cost most.

        Args:
            budget: A budget file, or ``"<target>/<metric>"`` -> largest allowed value.

        Returns:
            The judgement, with all numbers.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is no budget, or limits nothing of ``parity``.
        """
        __tracebackhide__ = True
        judgement = self.judge(budget)
        if judgement.exit_code:
            pytest.fail(failure_message(judgement), pytrace=False)
        return judgement

    def judge(self, budget: str | Path | Mapping[str, float]) -> Judgement:
        """The judgement of :meth:`within`, whatever it is."""
        from lightning_robust.deployment.budget_keys import read_parity_limits
        from lightning_robust.deployment.parity.module import judge_module

        limits, source = read_parity_limits(budget)
        return judge_module(self.module, self.inputs, limits, source, self.targets, **self.settings)


@pytest.fixture(name="parity")
def parity_fixture() -> Callable[..., MeasuredModule]:
    """Holds a deployed module to a budget: ``parity(module, inputs).within("parity.yaml")``.

    Further arguments are ``targets`` and those of ``lightning_robust.measure_parity``.
    """

    def measure(module: Any, inputs: Any, targets: Sequence[str] | None = None, **settings: Any) -> MeasuredModule:
        return MeasuredModule(module, inputs, targets, settings)

    return measure


def failure_message(judgement: Judgement) -> str:
    """What a failed test says: the verdict, and then a line for each number.

    Example:
        >>> from lightning_robust.gate.check import Check, Judgement
        >>> far = Check("emulated-fp16", "rel_l2", 0.2, 0.1, place="net.py:3 Pow in norm (y = x.pow(2))")
        >>> print(failure_message(Judgement("parity", (far,), "parity.yaml")))
        Deployment parity is beyond parity.yaml.
          beyond: emulated-fp16/rel_l2 is 0.2, allowed 0.1
                  worst at net.py:3 Pow in norm (y = x.pow(2))
    """
    what = f"beyond {judgement.budget}" if judgement.beyond else "not known, for it could not be measured"
    return "\n".join([f"Deployment parity is {what}.", *_message_lines(judgement)])


def _message_lines(judgement: Judgement) -> Iterable[str]:
    for check in [*judgement.beyond, *judgement.unmeasured]:
        yield f"  {'beyond' if check.status == 'beyond' else 'not measured'}: {check}"
        if check.status == "beyond" and check.place:
            yield f"          worst at {check.place}"
    for check in judgement.judged:
        if check.status == "within":
            yield f"  within: {check}"
