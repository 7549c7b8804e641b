"""One parity pass with all that a closer look at it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lightning_robust.deployment.engines import Runtime, Subject
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.harness.samples import FirstInputs


class Examined:
    """One pass with all that a closer look at it needs.

    Args:
        subject: The model and the samples.
        task: What the task says of its outputs.
        report: The numbers.
        inputs: All samples that were gathered; a pass during the fit takes the first of them.
        step: That of the weights, by which late results are marked.
    """

    def __init__(self, subject: Subject, task: Task, report: ParityReport, inputs: FirstInputs, step: int) -> None:
        self.subject, self.task, self.report, self.inputs, self.step = subject, task, report, inputs, step

    def lacks(self, made: Runtime, waited: bool) -> bool:
        """Whether a slow runtime that is there has no numbers of these weights."""
        return made.slow and not self.has_numbers(made, waited) and bool(made.can_build(self.subject.settings))

    def has_numbers(self, made: Runtime, waited: bool) -> bool:
        """Whether a slow runtime has been measured with these weights, and not with those of an earlier step.

        Args:
            made: The runtime.
            waited: Whether it worked beside the training: one that was not ready then is not tried again.
        """
        target = self.report.targets.get(made.name)
        if not made.slow or target is None:
            return False
        settled = ("measured", "built", "skipped") if waited else ("measured", "built")
        return target.status in settled and target.step in (None, self.step)

    def time(self, runtimes: Iterable[Runtime]) -> None:
        """Add the latency of each fast runtime that was measured and not timed; what cannot be timed has none."""
        targets = dict(self.report.targets)
        for made in runtimes:
            target = targets.get(made.name)
            if not made.slow and target is not None and target.status == "measured" and target.latency is None:
                latency = execute(made, self.subject, slice(1), timed=True).latency
                targets[made.name] = replace(target, latency=latency)
        self.report = replace(self.report, targets=targets)
