"""Other libraries, each in an environment of its own, timed on request from the process that races them.

This file runs on both sides: imported it makes environments and starts processes, as a script it is the other side. It
needs nothing but torch there: ``python guests.py TASK LIBRARY`` reads a line for each round and answers with
milliseconds of processor time. Processes differ by up to a tenth in what the same computation takes them, so that for
attacks the limit is timed there as well.
"""

from __future__ import annotations

import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vision import TASKS, large_resnet18, vit_s

EPS, STEP, STEPS = 0.1, 0.025, 10


class Package(NamedTuple):
    """What pip installs: the library, without what it asks for, and what it really imports beside torch."""

    library: str
    needs: tuple[str, ...]


PACKAGES = {
    # asks for torchvision, which it never imports
    "torchattacks": Package("torchattacks==3.5.1", ("scipy", "requests", "tqdm")),
    "foolbox": Package("foolbox==3.3.4", ("scipy", "eagerpy", "requests", "GitPython", "typing-extensions")),
    "ART": Package(
        "adversarial-robustness-toolbox==1.20.1", ("scipy", "scikit-learn", "six", "tqdm", "packaging", "setuptools")
    ),
    "ema-pytorch": Package("ema-pytorch==0.8.3", ()),
    "QPyTorch": Package("qtorch==0.3.0", ("setuptools", "ninja")),
    # its extra `onnx` asks for CuPy and a runtime with CUDA, which a conversion on the CPU does not need
    "AutoCast": Package(
        "nvidia-modelopt==0.47.0",
        (
            "onnx==1.23.2",
            "onnxruntime==1.32.0",
            "onnxscript==0.7.2",
            "onnx-graphsurgeon",
            "onnxslim",
            "lief",
            "cppimport",
            "polygraphy",
            "nvidia-ml-py",
            "ml-dtypes",
            "scipy",
            "tqdm",
            "rich",
            "pydantic",
            "packaging",
            "setuptools",
        ),
    ),
}


def limit(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Ten forward and input-gradient passes."""

    def run() -> None:
        for _ in range(STEPS):
            z = x.detach().requires_grad_()
            torch.autograd.grad(cross_entropy(model(z), y, reduction="sum"), z)

    return run


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Its PGD."""
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS)
    return lambda: attack(x, y)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Its PGD, with the check of success that it always makes."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=STEP)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return lambda: attack(wrapped, x, y, epsilons=EPS)


def art_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Its PGD, on one batch."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1))
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
    )
    pictures, labels = x.numpy(), y.numpy()
    return lambda: attack.generate(pictures, labels)


def ema_update(module: nn.Module) -> Callable[[], object]:
    """One update with a decay of 0.999."""
    from ema_pytorch import EMA

    return EMA(module, beta=0.999, update_after_step=0, update_every=1, use_foreach=True).update


def qpytorch(values: Tensor) -> Callable[[], object]:
    """Stochastic rounding to 8 bits, an exponent a row."""
    from qtorch.quant import block_quantize

    return lambda: block_quantize(values, 8, dim=0, rounding="stochastic")


ATTACKS = {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd, "ART": art_pgd}


class Guest:
    """A library that runs a task in its own environment; called, it runs a round and returns its milliseconds.

    Attributes:
        limits: Of each round, what the limit took in the same process; empty where the task has none.

    Args:
        library: One of :data:`PACKAGES`.
        task: What :func:`contestants` knows.
        folder: Where environments are made, once.

    Raises:
        RuntimeError: If the environment cannot be made or the library fails; says what it printed.
    """

    def __init__(self, library: str, task: str, folder: Path) -> None:
        self.library = library
        self.limits: list[float] = []
        command = [str(environment(library, folder)), __file__, task, library]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        """One round."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print("go", file=self.process.stdin, flush=True)
            spent, *limits = map(float, self.process.stdout.readline().split())
        except (ValueError, OSError) as error:
            raise RuntimeError(f"{self.library} gave no time: {self.process.communicate()[1][-500:]}") from error
        self.limits += limits
        return spent

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def environment(library: str, folder: Path) -> Path:
    """The interpreter of a library's environment, which is made where it is missing."""
    place = folder / "environments" / library
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        venv.create(place, with_pip=True, clear=True)
        package = PACKAGES[library]
        version = torch.__version__.partition("+")[0]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for wanted in ([f"torch=={version}", "numpy"], package.needs, ["--no-deps", package.library]):
            if wanted:
                done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{library} could not be installed: {done.stderr[-500:]}")
        (place / "complete").touch()
    return python


def contestants(task: str, library: str) -> list[Callable[[], object]]:
    """One round of a task with a library; for an attack also the limit."""
    torch.manual_seed(0)
    if task in TASKS:
        model, x, y = TASKS[task]()
        return [ATTACKS[library](model, x, y), limit(model, x, y)]
    if task == "quantiser":
        return [qpytorch(torch.randn(512, 4608))]
    return [ema_update({"ResNet-18": large_resnet18, "ViT-S": vit_s}[task]())]


def main(task: str, library: str) -> None:
    """The other side."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries greet on stdout
    runs = contestants(task, library)
    for _ in sys.stdin:
        spent = []
        for run in runs:
            start = time.process_time()
            run()
            spent.append(1e3 * (time.process_time() - start))
        print(*spent, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
