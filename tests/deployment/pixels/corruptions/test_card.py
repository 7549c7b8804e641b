"""The card's Python runs, its picture is there, and its table has every corruption."""

import re
from pathlib import Path

from lightning_robust.deployment.pixels import corruptions
from lightning_robust.deployment.pixels.corruptions.names import CORRUPTION_NAMES

CARD = Path(corruptions.__file__).parent / "README.md"


def test_card():
    text = CARD.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == list(CORRUPTION_NAMES)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (CARD.parent / link).exists(), link
