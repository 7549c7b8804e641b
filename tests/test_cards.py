"""Every technique has a card whose Python runs and whose YAML is understood."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_robust.cli import TECHNIQUES
from lightning_robust.demo.fashion_mnist import RobustImageClassifier


def name_of(card):
    return card.parent.name


PACKAGE = Path(__file__).parents[1] / "lightning_robust"
CARDS = sorted([*PACKAGE.glob("callbacks/**/README.md"), *PACKAGE.glob("mixins/**/README.md")], key=name_of)
SECTIONS = ("**When.**", "**YAML.**", "**Python.**", "**Cost.**", "**With others.**", "**Measured.**", "**Reference")


def test_all_are_found():
    assert [name_of(card) for card in CARDS] == [
        *(
            "adversarial",
            "averaging",
            "datapath",
            "deployment_parity",
            "greedy_soup",
            "initialise",
            "layer_criticality",
        ),
        *("lazy_training", "preprocessing", "regmixup", "robust_validation", "rotation_ssl", "swalp", "uat", "wise_ft"),
    ]


@pytest.mark.parametrize("card", CARDS, ids=name_of)
def test_sections_links_and_no_left_over_marks(card):
    text = card.read_text()
    assert [section for section in SECTIONS if section not in text] == []
    assert not re.search(r"MEASURED|SPEED|TBD", text)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (card.parent / link).exists(), link


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
@pytest.mark.parametrize("card", CARDS, ids=name_of)
def test_python_runs(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    exec(code, {})


@pytest.mark.parametrize("card", CARDS, ids=name_of)
def test_yaml_is_understood(card):
    (text,) = re.findall(r"```yaml\n(.*?)```", card.read_text(), re.DOTALL)
    ((key, settings),) = yaml.safe_load(text).items()
    # mixins are settings of the model
    (build,) = [slot.cls for slot in TECHNIQUES if slot.key == key] or [RobustImageClassifier]
    assert key == "model" or build is not RobustImageClassifier
    made = build(**settings)
    assert all(getattr(made, name) == value for name, value in settings.items())
