"""One parity pass: distances, causes, layers."""

from lightning_robust.deployment.parity.measure import ParityReport as ParityReport
from lightning_robust.deployment.parity.measure import measure_parity as measure_parity
