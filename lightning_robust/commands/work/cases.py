"""What ``replay --cases`` does: every case of a book with one checkpoint, and what was measured of it before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning_robust.commands.work.replay import Replayer
from lightning_robust.deployment.engines.names import target_names
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.pixels.names import Names
from lightning_robust.deployment.replay.case_book import (
    Measure,
    ReplayedCase,
    judge_cases,
    measure_case,
    read_earlier,
    run_cases,
)
from lightning_robust.deployment.replay.case_page import case_table, write_cases
from lightning_robust.deployment.replay.cases import Case, check_windows
from lightning_robust.deployment.replay.limits import PERTURBATION_NAMES, PYTORCH
from lightning_robust.deployment.replay.recording import Recording
from lightning_robust.deployment.replay.results import ReplayReport
from lightning_robust.extensions import extension_names
from lightning_robust.gate.budget import Budget
from lightning_robust.gate.check import Judgement
from lightning_robust.harness.run_folder import find_config


def replay_book(
    cases: Sequence[Case], replayer: Replayer, before: str | None, perturbed: Names | None, batch: int, folder: Path
) -> Judgement:
    """Replay all cases, write the page and its JSON, and print the table.

    Args:
        cases: The book.
        replayer: The checkpoint that is judged.
        before: An earlier checkpoint, or the cases.json of an earlier run.
        perturbed: Perturbations beside those that bounds name.
        batch: Frames at a time.
        folder: For the results.
    """
    check_windows(cases)
    measure = measuring(replayer, perturbed)
    results = run_cases(cases, measure, _Earlier(replayer, before, perturbed, batch), batch)
    facts = {"checkpoint": replayer.ckpt} | ({} if before is None else {"before": before})
    written = write_cases(results, folder, facts)
    print(case_table(results))
    print(f"\nWritten to {folder}: {', '.join(path.name for path in written)}")
    return judge_cases(results)


def measuring(replayer: Replayer, perturbed: Names | None) -> Measure:
    """How a checkpoint replays a case: with the targets and perturbations that its bounds name, too."""

    def measure(case: Case, recording: Recording) -> ReplayReport:
        subjects = [name.rpartition("/")[0] for name in case.bounds]
        return replayer.replay(recording, _perturbations_of(subjects, perturbed), limited_targets(case.bounds))

    return measure


def limited_targets(limits: Iterable[str]) -> list[str]:
    """The targets that limits name."""
    subjects = {name.rpartition("/")[0] for name in limits}
    return [name for name in target_names() if name in subjects and name != PYTORCH]


def limit_case(case: Case, budget: Budget) -> Case:
    """A case with the limits that a budget has for it and its class; its own bounds go before them."""
    return replace(case, bounds={**budget.of("replay", case.kind), **case.bounds})


def _perturbations_of(subjects: Sequence[str], given: Names | None) -> Names:
    """Those that bounds name, and those that were asked for."""
    if given == "all":
        return given
    known = (*PERTURBATION_NAMES, *extension_names("perturbations"))
    asked = [entry.name for entry in perturbations(given)] if given == "typical" else given or []
    asked = [] if asked == "none" else asked
    return list(dict.fromkeys([*(name for name in known if name in subjects), *asked])) or "none"


@dataclass
class _Earlier:
    """What was measured of a case before: by `before`, else as the case itself says."""

    replayer: Replayer
    before: str | None
    perturbed: Names | None
    batch: int
    _known: dict[str, Measure] = field(default_factory=dict)
    _read: Mapping[str, ReplayedCase] | None = None

    def __post_init__(self) -> None:
        if self.before is not None and Path(self.before).suffix == ".json":
            self._read = read_earlier(self.before)

    def __call__(self, case: Case, subject: str) -> ReplayedCase | None:
        if self._read is not None and case.name in self._read:
            return self._read[case.name]
        checkpoint = self.before if self.before is not None and self._read is None else case.before_checkpoint
        if checkpoint is not None:
            return measure_case(case, self._measure(str(checkpoint)), subject, self.batch)[0]
        return ReplayedCase(case.before) if case.before else None

    def _measure(self, checkpoint: str) -> Measure:
        if checkpoint not in self._known:
            config = str(find_config(checkpoint) or self.replayer.config)
            earlier = replace(self.replayer, ckpt=checkpoint, config=config)
            self._known[checkpoint] = measuring(earlier, self.perturbed)
        return self._known[checkpoint]
