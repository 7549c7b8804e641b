"""A LightningCLI of one's own: python own_cli.py fit -c own_cli.yaml."""

from lightning.pytorch.cli import LightningCLI
from steering import Frames, Steering

if __name__ == "__main__":
    LightningCLI(Steering, Frames)
