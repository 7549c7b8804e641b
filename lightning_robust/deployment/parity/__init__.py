"""One parity pass: distances, causes, layers, verdict."""

from lightning_robust.deployment.parity.measure import measure_parity as measure_parity
from lightning_robust.deployment.parity.result import ParityReport as ParityReport
