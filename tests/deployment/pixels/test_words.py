"""Every entry of the catalogue has words of its own, and every family a remedy."""

from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.deployment.pixels.words import label_of, remedy_of


def test_every_entry_has_its_own_few_words():
    labels = [label_of(name) for name in CATALOGUE]
    assert len(set(labels)) == len(CATALOGUE)
    assert all(len(label) <= 24 and "_" not in label for label in labels)


def test_every_family_has_a_remedy():
    remedies = {entry.family: remedy_of(name) for name, entry in CATALOGUE.items()}
    assert remedies.keys() == set(FAMILIES)
    assert len(set(remedies.values())) == len(FAMILIES)
    assert all(text.endswith(".") for text in remedies.values())
    assert remedy_of("unknown") == ""
