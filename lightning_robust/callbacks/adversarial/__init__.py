"""Train on perturbed inputs, and validate on them."""

from lightning_robust.callbacks.adversarial.callback import AdversarialCallback as AdversarialCallback
