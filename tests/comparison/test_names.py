"""What rows are called: techniques that are switched on, and as few settings as tell rows apart."""

from pathlib import Path

import pytest

from lightning_robust.comparison.finished_runs import FinishedRun
from lightning_robust.comparison.names import (
    distinguish,
    flatten_settings,
    identity,
    name_configurations,
    other_differences,
    techniques,
)

CLASS = "lightning_robust.callbacks."


def config(*, model=None, **keys):
    return {"seed_everything": 0, "model": {"class_path": "my.Module", "init_args": model or {}}, **keys}


def swa(**arguments):
    return {"class_path": CLASS + "SWACallback", "init_args": arguments}


def test_techniques_of_a_configuration():
    content = config(model={"regmixup_weight": 1.0, "regmixup_alpha": 20.0, "rotation_weight": 0.0})
    content |= {"swa": swa(start=1), "greedy_soup": False, "deployment_parity": {"class_path": "x", "init_args": {}}}
    content["trainer"] = {"callbacks": [{"class_path": CLASS + "WiSEFTCallback", "init_args": {"alphas": 3}}]}
    assert techniques(content) == {
        "regmixup": {"regmixup_weight": 1.0, "regmixup_alpha": 20.0},
        "wise_ft": {"alphas": 3},
        "swa": {"start": 1},
    }
    rewound = {"class_path": CLASS + "LayerCriticalityCallback", "init_args": {"rewind": True}}
    assert techniques(config(layer_criticality=rewound)) == {"layer_criticality": {"rewind": True}}
    assert techniques(config(layer_criticality=rewound | {"init_args": {"rewind": False}})) == {}
    measured = config(adversarial={"class_path": CLASS + "AdversarialCallback", "init_args": {"ratio": 0.0}})
    assert techniques(measured) == {}
    probe = {"class_path": CLASS + "RobustValidationCallback", "init_args": {"eps": 0.1}}
    assert techniques(config(robust_validation=probe)) == {}
    assert techniques(config(trainer={"callbacks": [probe]})) == {}


def test_settings_are_told_as_short_as_they_differ():
    models = [("my.Net", {"lr": 1}, None), ("my.Net", {"lr": 2}, 3), ("your.Net2", {"lr": 2}, 3)]
    models += [("your.Net2", {"lr": 3}, 3), ("your.Net2", {"lr": 4}, 3)]
    runs = [
        FinishedRun(
            Path(str(i)),
            {
                "model": {"class_path": path},
                "optimizer": optimizer,
                "head": {"lr": 1},
                "trainer": {"max_epochs": epochs},
            },
            {},
        )
        for i, (path, optimizer, epochs) in enumerate(models)
    ]
    assert name_configurations(runs) == [
        "plain [class_path=Net, lr=1]",
        "plain [class_path=Net, lr=2]",
        "plain [class_path=Net2, lr=2]",
        "plain [class_path=Net2, lr=3]",
        "plain [class_path=Net2, lr=4]",
    ]
    assert other_differences(runs) == ["model.class_path", "optimizer.lr", "trainer.max_epochs"]


def test_lists_and_mappings_of_a_technique_are_its_own():
    """As fingerprint --emit writes them."""
    cured = {"preprocessing_weight": 1.0, "preprocessing_entries": ["bgr"], "preprocessing_ranges": {"shift": [0, 1]}}
    runs = [FinishedRun(Path("run"), config(model=arguments), {}) for arguments in ({}, cured)]
    assert other_differences(runs) == []


def test_fewest_settings_against_all_subsets():
    """Two keys are needed and two are taken, since no single one tells four pairs apart; equal ones get no label."""
    pairs = [{"a": str(a), "b": str(b), "c": "0"} for a in range(2) for b in range(2)]
    assert distinguish(pairs) == ["a=0, b=0", "a=0, b=1", "a=1, b=0", "a=1, b=1"]
    assert distinguish([{"a": "1"}, {"a": "1"}]) == ["", ""]


def test_the_same_last_key_is_told_by_its_whole_path():
    assert distinguish([{"x.lr": "1", "y.lr": "1"}, {"x.lr": "2", "y.lr": "1"}, {"x.lr": "2", "y.lr": "3"}]) == [
        "x.lr=1, y.lr=1",
        "x.lr=2, y.lr=1",
        "x.lr=2, y.lr=3",
    ]


def test_runs_without_a_configuration_are_their_folders():
    paths = ["/a/version_0", "/b/version_0", "/b/version_1"]
    assert name_configurations([FinishedRun(Path(path), {}, {}) for path in paths]) == [
        "version_0 [/a/version_0]",
        "version_0 [/b/version_0]",
        "version_1",
    ]


def test_seeds_and_places_of_output_are_no_settings():
    content = {"seed_everything": 3, "data": {"seed": 1, "size": [8, 9]}, "trainer": {"logger": True}}
    content["greedy_soup"] = {"class_path": "x", "init_args": {"dirpath": "/y"}}
    assert flatten_settings(content) == {"data.size.0": "8", "data.size.1": "9", "greedy_soup.class_path": "'x'"}


@pytest.mark.parametrize("key", ["root", "data_dir", "dirpath", "save_dir", "path"])
@pytest.mark.parametrize("section", ["data", "model"])
def test_a_folder_that_is_read_is_a_setting(section, key):
    assert flatten_settings({section: {"init_args": {key: "/x"}}}) == {f"{section}.init_args.{key}": "'/x'"}


def test_an_empty_list_of_the_data_is_another_setting():
    runs = [FinishedRun(Path("a"), {"data": {"classes": classes}}, {}) for classes in ([], [1])]
    assert identity(runs[0]) != identity(runs[1])


def test_a_long_value_is_told_in_short():
    runs = [FinishedRun(Path(end), {"data": {"text": "x" * 100_000 + end}, "a": end}, {}) for end in "pq"]
    assert max(map(len, name_configurations(runs))) < 100
