"""What a reader should know of a comparison: doubts about runs, what does not compare, what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lightning_robust.callbacks.robust_validation.evaluators import DEFAULT_STEPS
from lightning_robust.comparison.columns import Column
from lightning_robust.comparison.finished_runs import FinishedRun
from lightning_robust.comparison.names import class_arguments, data_of, distinguish, other_differences, seeds

if TYPE_CHECKING:
    from lightning_robust.comparison.table import ComparedRow


def cautions(rows: Sequence[ComparedRow]) -> list[str]:
    """Which rows are of other models or other data than the rest."""
    found = []
    if len({row.model for row in rows}) > 1:
        models = _in_rows({index: row.model or "an unknown model" for index, row in enumerate(rows)})
        found.append(f"The rows are of different models, ranked together: {models}.")
    if len({row.data for row in rows}) > 1:
        labels = distinguish([data_of(row.runs[0]) for row in rows])
        data = _in_rows({index: label or "data unknown" for index, label in enumerate(labels)})
        found.append(
            f"The rows were measured on different data: {data}. The best is marked among rows on the same data only; "
            "numbers on different data do not compare."
        )
    return found


def _in_rows(names: Mapping[int, str]) -> str:
    """``my.Net in rows 1, 2; my.Other in row 3``."""
    places: dict[str, list[str]] = {}
    for index, name in names.items():
        places.setdefault(name, []).append(str(index + 1))
    return "; ".join(f"{name} in row{'s' * (len(n) > 1)} {', '.join(n)}" for name, n in places.items())


def other_settings(runs: Sequence[FinishedRun]) -> list[str]:
    """What configurations differ in beside techniques."""
    names = other_differences(runs)
    return [f"The configurations differ in more than techniques: {', '.join(names)}."] if names else []


def doubts(rows: Sequence[ComparedRow], values: pd.DataFrame) -> list[str]:
    """What speaks against the numbers of a run or of a row."""
    notes = [f"{run.folder.name} ({row.name}): {note}" for row in rows for run in row.runs for note in run.notes]
    for index, row in enumerate(rows):
        given = list(filter(None, map(_set_seeds, row.runs)))
        if len(set(given)) < len(given):
            notes.append(f"{row.name}: several runs have the same seed, so that the interval is not one over seeds.")
        counts = values.loc[index].map(len).to_dict()
        partial = sorted(str(tag) for tag, count in counts.items() if 0 < count < len(row.runs))
        notes += [f"{row.name}: only some of its {len(row.runs)} runs have {tag}." for tag in partial]
    return notes


def _set_seeds(run: FinishedRun) -> str:
    """The seeds that somebody set, in words; not ``true``, which draws one, nor ``false``. Empty without any."""
    return ", ".join(f"{path}={seed}" for path, seed in seeds(run.config) if type(seed) is int)


def unknown_directions(columns: Sequence[Column]) -> list[str]:
    """Which columns mark nothing, and how to say what is better."""
    tags = [column.tag for column in columns if column.mode is None]
    if not tags:
        return []
    cure = f"--mode '{tags[0]}=max' or '{tags[0]}=min'"
    return [f"Nothing is marked as best in {', '.join(tags)}, whose names do not say what is better: {cure}."]


def attacks(runs: Sequence[FinishedRun], columns: Sequence[Column]) -> list[str]:
    """Which attack stands behind the attacked columns, from the configurations."""
    if not any(column.tag.startswith("adversarial/") for column in columns):
        return []
    names = sorted({name for run in runs if (name := _attack_of(run.config))})
    if not names:
        return []
    doubt = " Runs were attacked differently: do not compare those numbers." if len(names) > 1 else ""
    return [f"Attacked at validation by {' or '.join(names)}; behind @ stands the radius.{doubt}"]


def corruptions_under(runs: Sequence[FinishedRun], columns: Sequence[Column]) -> list[str]:
    """What the mean corruption errors are means over, from the configurations."""
    if not any(column.tag in ("corruption/mce", "corruption/mean_error") for column in columns):
        return []
    found = {under: None for run in runs if (under := _validated_under(run.config))}
    if not found:
        return []
    doubt = " Runs were corrupted differently: do not compare those numbers." if len(found) > 1 else ""
    return [f"Mean corruption errors are over {' or '.join(found)}.{doubt}"]


def _validated_under(config: Mapping[str, Any]) -> str:
    training = class_arguments(config.get("adversarial")).get("val_under")
    under = class_arguments(config.get("robust_validation")).get("under", training) or []
    return ", ".join([under] if isinstance(under, str) else under)


def _attack_of(config: Mapping[str, Any]) -> str:
    """The attack at validation; where there are both, ``robust_validation`` is the one that attacks. Empty without."""
    ours, training = (class_arguments(config.get(key)) for key in ("robust_validation", "adversarial"))
    if config.get("robust_validation"):
        return _name_attack(ours.get("evaluator") or "pgd", ours.get("steps"), ours.get("norm"))
    if config.get("adversarial") and training.get("val_eps") != []:
        return _name_attack("pgd", training.get("val_steps"), training.get("norm"))
    return ""


def _name_attack(evaluator: str, steps: int | None, norm: str | None) -> str:
    steps = DEFAULT_STEPS.get(evaluator) if steps is None else steps
    names = {"pgd": f"PGD-{steps}" if steps else "FGSM", "auto": f"APGD-{steps} and Square"}
    name = names.get(evaluator, f"the smallest radius by APGD-{steps}")
    return name if norm in (None, "linf") else f"{name} in {norm}"
