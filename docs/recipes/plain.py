"""A plain Trainer: python plain.py."""

import lightning.pytorch as pl
from steering import Frames, Steering

from lightning_robust import DeploymentParityCallback, SWACallback

if __name__ == "__main__":
    pl.seed_everything(0)
    callbacks = [SWACallback(start=1), DeploymentParityCallback(["onnxruntime-fp32", "emulated-fp16"])]
    trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, accelerator="cpu")
    trainer.fit(Steering(), Frames())
    print(callbacks[1].report.targets["emulated-fp16"].metrics["steering_deg_p99"])
