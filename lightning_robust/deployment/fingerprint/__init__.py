"""What the deployed side's preprocessing does differently, from pairs of pictures."""

from lightning_robust.deployment.fingerprint.search import fingerprint as fingerprint
