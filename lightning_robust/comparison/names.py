"""What saved configurations switch on, which of them are the same run again, and what to call those that differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_robust.comparison.runs import FinishedRun

_WEIGHTS = {"regmixup_weight": "regmixup", "rotation_weight": "rotation_ssl"}
_WEIGHTS |= {"uat_ot_weight": "uat_ot", "uat_ft_weight": "uat_ft"}
_NO_TECHNIQUE = {"seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "ckpt_path"}
_NO_TECHNIQUE |= {"weights_only"}
_MEASURES = {"deployment_parity", "layer_criticality", "lazy_training", "datapath"}
_SEED = {"seed", "seed_everything"}
_PATHS = {"ckpt_path", "default_root_dir", "dirpath", "save_dir", "root", "data_dir", "logger"}


def techniques(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> arguments of the techniques that a saved configuration switches on; what only measures is left out."""
    found: dict[str, Mapping[str, Any]] = {}
    model = arguments(config.get("model"))
    for key, name in _WEIGHTS.items():
        if model.get(key):
            prefix = key.split("_")[0] + "_"
            found[name] = {k: v for k, v in model.items() if k.startswith(prefix)}
    for callback in _list((config.get("trainer") or {}).get("callbacks")):
        path = callback.get("class_path", "") if isinstance(callback, dict) else ""
        if path.startswith("lightning_robust.") and path.endswith("Callback"):
            name = path.rpartition(".")[2].removesuffix("Callback").replace("WiSEFT", "WiseFt")
            found[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()] = arguments(callback)
    found |= {key: arguments(value) for key, value in config.items() if value is True or _has_class(value)}
    if found.get("adversarial", {}).get("ratio") == 0:
        del found["adversarial"]  # trains on clean inputs and measures attacked ones
    only_measure = _MEASURES - ({"layer_criticality"} if found.get("layer_criticality", {}).get("rewind") else set())
    return {name: given for name, given in found.items() if name not in _NO_TECHNIQUE | only_measure}


def same(run: FinishedRun) -> str:
    """Equal for runs that are repetitions of each other."""
    return repr(sorted(_flat(run.config).items())) if run.config else str(run.folder)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Path of keys -> value, without seeds and paths of files."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts = [_flat(v, f"{path}.{k}" if path else str(k)) for k, v in items if k not in _SEED | _PATHS]
        return {key: each for part in parts for key, each in part.items()}
    return {path: repr(value)}


def told_apart(runs: Sequence[FinishedRun]) -> tuple[list[str], list[str]]:
    """A name for each configuration, and in what else they differ."""
    switched = [techniques(run.config) for run in runs]
    names = []
    for run, on in zip(runs, switched, strict=True):
        parts = [_told(name, given, [s[name] for s in switched if name in s]) for name, given in on.items()]
        names.append(" + ".join(parts) or ("plain" if run.config else run.folder.name))
    others = [{k: v for k, v in _flat(run.config).items() if not _of_technique(k)} for run in runs if run.config]
    apart = sorted({key for other in others for key in other if len({o.get(key) for o in others}) > 1})
    for name in {name for name in names if names.count(name) > 1}:
        alike = [i for i, each in enumerate(names) if each == name]
        flats = {i: _flat(runs[i].config) for i in alike}
        keys = _separating(list(flats.values()))
        for i in alike:
            told = _settings(flats[i], keys) if runs[i].config else str(runs[i].folder)
            names[i] = f"{name} [{told}]" if told else name
    remark = f"The configurations differ in more than techniques: {', '.join(apart)}."
    return names, [remark] if apart else []


def _told(name: str, given: Mapping[str, Any], of_all: Sequence[Mapping[str, Any]]) -> str:
    told = _settings(_flat(given), _separating([_flat(each) for each in of_all]))
    return f"{name} ({told})" if told else name


def _separating(flats: Sequence[Mapping[str, str]]) -> list[str]:
    """A few keys whose values tell all that differ apart, in the order of the configurations."""
    order = list({key: None for flat in flats for key in flat})
    different = len({tuple(flat.get(key) for key in order) for flat in flats})
    chosen: list[str] = []

    def parts(keys: Sequence[str]) -> int:
        return len({tuple(flat.get(key) for key in keys) for flat in flats})

    while parts(chosen) < different:
        chosen.append(max(order, key=lambda key: parts([*chosen, key])))
    return sorted(chosen, key=order.index)


def _settings(flat: Mapping[str, str], keys: Sequence[str]) -> str:
    """Those that have a value, as short as they can be told apart: ``max_epochs=10, class_path=Detector``."""
    ends = [key.rpartition(".")[2] for key in keys]
    told = []
    for key, end in zip(keys, ends, strict=True):
        value = flat.get(key, "None").strip("'")
        value = value.rpartition(".")[2] if end == "class_path" else value
        told.append(f"{end if ends.count(end) == 1 else key}={value}")
    return ", ".join(each for each in told if not each.endswith("=None"))


def _of_technique(key: str) -> bool:
    first, last = key.partition(".")[0], key.rpartition(".")[2]
    return (
        first not in _NO_TECHNIQUE
        or key.startswith("trainer.callbacks")
        or last.startswith(("regmixup_", "rotation_", "uat_"))
    )


def seeds(config: Mapping[str, Any], path: str = "") -> str:
    """Every seed of a configuration, as one string."""
    parts = []
    for key, value in config.items():
        if key in _SEED:
            parts.append(f"{path}{key}={value}")
        elif isinstance(value, Mapping):
            parts.append(seeds(value, f"{path}{key}."))
    return " ".join(filter(None, parts))


def arguments(value: Any) -> dict[str, Any]:
    """Arguments of a class in a configuration, written with its path or without."""
    if not isinstance(value, dict):
        return {}
    return dict(value.get("init_args") or {}) if "class_path" in value else value


def _has_class(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
