"""Hydra builds the Trainer: python hydra_app.py trainer.max_epochs=4, or with -m several runs."""

import hydra
import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path=".", config_name="hydra_app")
def main(config: DictConfig) -> None:
    """Train what the configuration names."""
    pl.seed_everything(config.seed)
    instantiate(config.trainer).fit(instantiate(config.model), instantiate(config.data))


if __name__ == "__main__":
    main()
