"""Names configurations: the techniques that they switch on, and the few settings that tell equal names apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import filterfalse
from typing import Any

import pandas as pd

from lightning_robust.comparison.finished_runs import FinishedRun

_MIXIN_WEIGHTS = {
    "preprocessing_weight": "preprocessing",
    "regmixup_weight": "regmixup",
    "rotation_weight": "rotation_ssl",
    "uat_ot_weight": "uat_ot",
    "uat_ft_weight": "uat_ft",
}
_MIXIN_PREFIXES = ("preprocessing_", "regmixup_", "rotation_", "uat_")
_LIGHTNING_KEYS = {"seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "ckpt_path"}
_LIGHTNING_KEYS |= {"weights_only"}
_DIAGNOSTICS = {"robust_validation", "deployment_parity", "layer_criticality", "lazy_training", "datapath"}
_SEEDS = {"seed", "seed_everything"}
_OUTPUTS = {"ckpt_path", "default_root_dir", "dirpath", "save_dir", "logger"}
_READ = ("data", "model")  # where a path says what is read rather than where something is written
_LONGEST = 60


def techniques(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> arguments of the techniques that change the training; diagnostics are left out.

    Example:
        >>> techniques({"model": {"init_args": {"regmixup_weight": 1.0}, "class_path": "my.Model"}, "swa": True})
        {'regmixup': {'regmixup_weight': 1.0}, 'swa': {}}
    """
    switched_on = dict([*_mixins(config), *_listed_callbacks(config), *_keys(config)])
    diagnostics = set(_DIAGNOSTICS)
    if switched_on.get("layer_criticality", {}).get("rewind"):
        diagnostics.remove("layer_criticality")
    if switched_on.get("adversarial", {}).get("ratio") == 0:
        diagnostics.add("adversarial")  # trains on clean inputs and measures attacked ones
    return {name: arguments for name, arguments in switched_on.items() if name not in diagnostics}


def _mixins(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    model = class_arguments(config.get("model"))
    for weight, name in _MIXIN_WEIGHTS.items():
        if model.get(weight):
            prefix = weight.partition("_")[0] + "_"
            yield name, {key: value for key, value in model.items() if key.startswith(prefix)}


def _listed_callbacks(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        path = (callback.get("class_path") if isinstance(callback, dict) else None) or ""
        if path.startswith("lightning_robust.") and path.endswith("Callback"):
            name = path.rpartition(".")[2].removesuffix("Callback").replace("WiSEFT", "WiseFt")
            yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(), class_arguments(callback)


def _keys(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in config.items():
        switched_on = value is True or (isinstance(value, dict) and "class_path" in value)
        if switched_on and key not in _LIGHTNING_KEYS:
            yield key, class_arguments(value)


def class_arguments(value: Any) -> dict[str, Any]:
    """Arguments of a class in a configuration, written with its path or without."""
    if not isinstance(value, dict):
        return {}
    return dict(value.get("init_args") or {}) if "class_path" in value else value


def identity(run: FinishedRun) -> dict[str, str]:
    """The settings that runs share when they repeat each other with another seed; without any, the folder."""
    settings = flatten_settings(run.config or str(run.folder))
    off = {key for key, value in settings.items() if value == "False" and "." not in key and _is_of_technique(key)}
    return {key: value for key, value in settings.items() if key not in off}


def flatten_settings(value: Any) -> dict[str, str]:
    """Dotted path -> value of the settings that make a result; seeds and places of output are left out.

    Whatever the data take counts, folders of data sets too: runs on other data are no repetitions of each other.

    Example:
        >>> flatten_settings({"optimizer": {"lr": 0.1}, "seed_everything": 1, "betas": [0.9]})
        {'optimizer.lr': '0.1', 'betas.0': '0.9'}
    """
    return {".".join(path): repr(leaf) for path, leaf in _leaves(value) if not _is_left_out(path)}


def _is_left_out(path: tuple[str, ...]) -> bool:
    names = {*path}
    return bool(names & _SEEDS) or (bool(names & _OUTPUTS) and path[0] not in _READ)


def model_of(run: FinishedRun) -> str:
    """The class of a run's model; empty where its configuration does not say.

    Example:
        >>> model_of(FinishedRun("runs/a", {"model": {"class_path": "my.Net"}}, {}))
        'my.Net'
    """
    model = run.config.get("model")
    return str((model.get("class_path") if isinstance(model, Mapping) else model) or "")


def data_of(run: FinishedRun) -> dict[str, str]:
    """The class of a run's data and its arguments that are words, such as folders and names of splits.

    Numbers, as of samples or workers, do not make another data set.

    Example:
        >>> data = {"class_path": "my.Data", "init_args": {"root": "/x", "batch_size": 8}}
        >>> data_of(FinishedRun("runs/a", {"data": data}, {}))
        {'data.class_path': "'my.Data'", 'data.init_args.root': "'/x'"}
    """
    settings = flatten_settings({"data": run.config["data"]}) if run.config.get("data") else {}
    return {key: value for key, value in settings.items() if value.startswith(("'", '"'))}


def seeds(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Path and value of every seed of a configuration."""
    return [(".".join(path), leaf) for path, leaf in _leaves(config) if path[-1] in _SEEDS]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping | list) and (value or path[-1:] in ((), ("init_args",))):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def name_configurations(runs: Sequence[FinishedRun]) -> list[str]:
    """A name for each configuration: ``swa (start=2) + regmixup``, or the folder of a run without a configuration.

    Args:
        runs: One of each configuration.
    """
    switched_on = pd.DataFrame(
        [
            (row, technique, flatten_settings(arguments))
            for row, run in enumerate(runs)
            for technique, arguments in techniques(run.config).items()
        ],
        columns=["row", "technique", "settings"],
    )
    switched_on["label"] = _add_labels(switched_on["technique"].tolist(), switched_on["settings"].tolist(), "{} ({})")
    joined = switched_on.groupby("row")["label"].agg(" + ".join).to_dict()
    names = [joined.get(row, "plain" if run.config else run.folder.name) for row, run in enumerate(runs)]
    return _add_labels(names, [identity(run) for run in runs], "{} [{}]")


def other_differences(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings in which configurations differ besides those of techniques, sorted."""
    table = pd.DataFrame([flatten_settings(run.config) for run in runs if run.config], dtype=object)
    return sorted(filterfalse(_is_of_technique, table.columns[table.nunique(dropna=False) > 1]))


def _is_of_technique(key: str) -> bool:
    first, *others = key.split(".")  # an argument may be a list or a mapping with keys of its own
    listed = key.startswith("trainer.callbacks")
    return first not in _LIGHTNING_KEYS or listed or any(part.startswith(_MIXIN_PREFIXES) for part in others)


def _add_labels(names: Sequence[str], settings: Sequence[Mapping[str, str]], form: str) -> list[str]:
    """Each name with the settings that tell it from the others of the same name."""
    labelled = list(names)
    for name in set(names):
        members = [index for index, other in enumerate(names) if other == name]
        for index, label in zip(members, distinguish([settings[index] for index in members]), strict=True):
            labelled[index] = form.format(name, label) if label else name
    return labelled


def distinguish(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """A label for each of these: the fewest settings that tell them apart; empty where all are equal.

    Example:
        >>> distinguish([{"lr": "1", "head.lr": "1"}, {"lr": "2", "head.lr": "1"}])
        ['lr=1', 'lr=2']
    """
    order = list(dict.fromkeys(key for each in settings for key in each))
    keys: list[str] = []
    while _count_distinct(settings, keys) < _count_distinct(settings, order):
        keys.append(max(order, key=lambda key: _count_distinct(settings, [*keys, key])))
    keys.sort(key=order.index)
    ends = [key.rpartition(".")[2] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    return [_format_settings(each, dict(zip(keys, names, strict=True))) for each in settings]


def _count_distinct(settings: Sequence[Mapping[str, str]], keys: Sequence[str]) -> int:
    return len({tuple(each.get(key) for key in keys) for each in settings})


def _format_settings(settings: Mapping[str, str], names: Mapping[str, str]) -> str:
    """``max_epochs=10, class_path=Detector``, without what is None; a setting without a key is its value."""
    texts = []
    for key, name in names.items():
        value = settings.get(key, "None").strip("'")
        if key.endswith("class_path"):
            value = value.rpartition(".")[2]
        value = value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
        if value != "None":
            texts.append(f"{name}={value}" if name else value)
    return ", ".join(texts)
