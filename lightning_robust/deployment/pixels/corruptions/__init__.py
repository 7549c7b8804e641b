"""What a camera meets: weather, light, dirt, motion and lost frames, in five severities each."""

from lightning_robust.deployment.pixels.corruptions.catalogue import Corruption as Corruption
from lightning_robust.deployment.pixels.corruptions.catalogue import corruptions as corruptions
