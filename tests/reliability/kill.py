"""Kill trainings at random moments and go on with ``ckpt_path="last"``: the end must be that of a run left alone.

    python -m tests.reliability.kill --runs 200 --seed 0

Each run is one of the set-ups below, in turn. It is killed with SIGKILL once or twice, anywhere between its first line
and its last, and then resumed until it ends. Its weights, its metrics and the files of the techniques are compared, bit
for bit, with those of a run that nobody killed; no process of it and no temporary file of ours may be left.

The process that runs this imports torch once and starts no thread; every training is a fork of it.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust.deployment.engines import abilities, builder
from tests.boring import Boring, RobustBoring, make_trainer
from tests.deployment.engines.builds import GOOD
from tests.reliability.faults import TwoDays

MOST_KILLS = 2
SLOW = ("parity, layers", "parity, engines", "parity, background", "everything")
"""They have their turn in every second round."""
KEPT = ("soup", "wise_ft", "criticality")
"""The folders of techniques whose files are compared by name."""
TEMPORARY = ("lightning_robust-", ".build-", "onnxruntime-")
"""How the names of our temporary files and folders begin, as far as they have some."""


class Words(pl.LightningModule):
    """A classifier of tokens, for attacks on embeddings."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 8), nn.Linear(8, 4)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self._loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)

    def train_dataloader(self):
        """Four equal batches, since a loader cannot be resumed inside an epoch."""
        tokens = torch.randint(16, (16, 6), generator=torch.Generator().manual_seed(0)).repeat(4, 1)
        return DataLoader(TensorDataset(tokens, tokens[:, 0] % 4), 16)

    val_dataloader = train_dataloader


class ByStep(pl.Callback):
    """Random numbers depend on the step alone, since Lightning does not save the state of their generators."""

    def on_train_epoch_start(self, trainer, pl_module):
        torch.manual_seed(100 + trainer.current_epoch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(1000 + trainer.global_step)


def _attack(method, **settings):
    return lambda folder: (
        [AdversarialCallback(**{"method": method, "eps": 0.1, "val_batches": 1} | settings)],
        Boring(),
    )


def _attack_words(folder):
    return [AdversarialCallback(method="freelb", eps=0.1, steps=2, embedding="embedding")], Words()


def _swa(**settings):
    return SWACallback(**{"start": 0.25, "every": 1, "lr": [0.05, 0.01]} | settings)


def _average(**settings):
    return lambda folder: ([_swa(**settings)], Boring())


def _mixin(**settings):
    return lambda folder: ([], RobustBoring(**settings))


JUDGED = {"monitor": "val/loss", "mode": "min"}


def _soup(folder, **settings):
    return GreedySoupCallback(**JUDGED, top_k=2, ingredients="epochs", dirpath=str(folder / "soup"), **settings)


def _wise_ft(folder):
    return WiSEFTCallback(**JUDGED, alphas=[0.3], epsilon=1.0, dirpath=str(folder / "wise_ft"))


def _criticality(folder, **settings):
    small = {"checkpoints": ["2 steps", 0.5], "draws": 1, "dirpath": str(folder / "criticality")}
    return LayerCriticalityCallback(**(JUDGED | small | settings))


def _lazy():
    return LazyTrainingCallback(num_samples=4, kernel_samples=2)


def _datapath():
    return DatapathCallback(["pgd", "bf16"], steps=1, num_samples=4, num_paths=2, every_n_epochs=1)


def _robust_validation():
    return RobustValidationCallback(eps=0.1, steps=2, batches=1)


def _parity(targets=("torch-bf16",), **settings):
    small = {"perturbations": ["bgr"], "num_samples": 8, "pass_samples": 4, "time_limit": 10.0}
    return DeploymentParityCallback(list(targets), **(small | settings))


def _engines(**settings):
    """A child that builds for a third of a second, in the place of TensorRT's."""

    def make(folder):
        script = folder / "child.py"
        script.write_text(
            f"import json, sys, time\nspec = json.load(open(sys.argv[2]))\ntime.sleep(0.3)\n{_dedent(GOOD)}"
        )
        builder._CHILD = script
        abilities.missing_package, abilities.library_version = (lambda *_: ""), (lambda *_: "0")
        cache = str(folder / "cache")
        return [_parity(["tensorrt_rtx-fp16"], perturbations="none", localise=False, cache=cache, **settings)], Boring()

    return make


def _dedent(text):
    return "\n".join(line[4:] for line in text.splitlines())


def _everything(folder):
    mixins = {"regmixup_weight": 0.5, "rotation_weight": 0.5}
    callbacks = [
        AdversarialCallback(method="pgd", steps=1, eps=0.1, ratio=0.5),
        _robust_validation(),
        _criticality(folder, rewind=False),
        *(_lazy(), _datapath(), _swa(), _soup(folder), _wise_ft(folder), _parity()),
    ]
    return callbacks, RobustBoring(**mixins)


SETUPS = {
    "plain": lambda folder: ([], Boring()),
    "adversarial fgsm": _attack("fgsm"),
    "adversarial pgd": _attack("pgd", steps=2, ratio=0.5),
    "adversarial free": _attack("free", steps=2),
    "adversarial trades": _attack("trades", steps=2),
    "adversarial freelb": _attack_words,
    "swa": _average(),
    "swa ema": _average(kind="ema", half_life=3),
    "swa lawa": _average(kind="lawa", window=2),
    "swalp": _average(word_length=8),
    "regmixup": _mixin(regmixup_weight=1.0),
    "rotation": _mixin(rotation_weight=0.5),
    "uat": _mixin(uat_ot_weight=1.0, uat_ft_weight=1.0, uat_target="ema", uat_steps=2, uat_half_life=3),
    "greedy_soup": lambda folder: ([_soup(folder)], Boring()),
    "stock soup": lambda folder: ([_soup(folder, recipe="stock")], Boring()),
    "wise_ft": lambda folder: ([_wise_ft(folder)], TwoDays()),
    "criticality": lambda folder: ([_criticality(folder)], Boring()),
    "lazy": lambda folder: ([_lazy()], Boring()),
    "datapath": lambda folder: ([_datapath()], Boring()),
    "robust_validation": lambda folder: ([_robust_validation()], Boring()),
    "parity": lambda folder: ([_parity(localise=False)], Boring()),
    "parity, layers": lambda folder: ([_parity(["emulated-fp16"], perturbations="none")], Boring()),
    "parity, engines": _engines(),
    "parity, background": _engines(background=True),
    "everything": _everything,
}


def train(folder: Path, make) -> dict:
    """One training of three epochs of four steps, begun or gone on with; what it ends with.

    No checkpoint falls on the last batch of an epoch: one that is resumed from there has no validation of that epoch,
    with Lightning alone as with a technique.
    """
    pl.seed_everything(1)
    callbacks, module = make(folder)
    keeper = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=5, save_last=True)
    trainer = make_trainer(folder, [*callbacks, ByStep(), keeper], max_epochs=3, enable_checkpointing=True)
    trainer.fit(module, ckpt_path="last")
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    # not those of the fit: of a run that was complete when it was killed, nothing is left to train or to validate
    measured = make_trainer(folder).validate(module, verbose=False)
    metrics = {name: value.hex() for each in measured for name, value in each.items()}
    files = [f"{kept}/{path.name}" for kept in KEPT for path in folder.glob(f"{kept}/*")]
    return {"weights": digest.hexdigest(), "metrics": metrics, "files": sorted(files), "step": trainer.global_step}


@dataclass
class Run:
    """A training in a folder of its own.

    Args:
        folder: Everything that it writes, temporary files included, is in it.
        make: Makes its callbacks and its module.
    """

    folder: Path
    make: object
    kills: int = 0

    def start(self) -> int:
        """Fork; the child trains, writes what it ends with and is gone."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child:
            return child
        with contextlib.suppress(BaseException), (self.folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os.environ["TMPDIR"], tempfile.tempdir = str(self.folder / "tmp"), None
            try:
                result = train(self.folder, self.make)
                (self.folder / "result.part").write_text(json.dumps(result))
                (self.folder / "result.part").rename(self.folder / "result.json")
            except BaseException:
                traceback.print_exc(file=log)
        os._exit(0)

    def wait(self, child: int, seconds: float | None = None) -> bool:
        """Whether the child ends by itself in this time; else it is killed, and nothing that it could do about it."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            done, _ = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
            if done:
                return True
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.kills += 1
        return False

    def finish(self) -> dict | None:
        """Go on until it ends; None where it ends in an error."""
        self.wait(self.start())
        return self.result()

    def result(self) -> dict | None:
        """What it ended with."""
        result = self.folder / "result.json"
        return json.loads(result.read_text()) if result.exists() else None

    def left_behind(self) -> list[str]:
        """Processes of this run that are still there after ten seconds, and temporary files of ours."""
        deadline = time.monotonic() + 10
        while (processes := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        ours = [path for path in self.folder.rglob("*") if path.name.startswith(TEMPORARY)]
        return processes + [str(path.relative_to(self.folder)) for path in ours]

    def _processes(self) -> list[str]:
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.folder) in (each / "cmdline").read_text().replace("\0", " "):
                    found.append(f"process {each.name}")
        return found


def compare(expected: dict, result: dict | None) -> str:
    """What differs; "" where nothing does."""
    if result is None:
        return "it ended in an error"
    return ", ".join(name for name in expected if expected[name] != result.get(name))


@dataclass
class Row:
    """The runs of one set-up."""

    runs: int = 0
    kills: int = 0
    identical: int = 0
    clean: int = 0


def measure(names, runs: int, seed: int, folder: Path, tell=print) -> dict[str, Row]:
    """Kill and resume so many runs, the set-ups in turn.

    Args:
        names: Of the set-ups.
        runs: How many; each is killed at least once.
        seed: Of the moments.
        folder: Where they write; that of a run that ends as it should is removed.
        tell: Is given a line for each run.
    """
    draw = random.Random(seed)
    expected, seconds = {}, {}
    rows = collections.defaultdict(Row)
    quick = [name for name in names if name not in SLOW]
    for index, name in zip(range(runs), itertools.cycle([*names, *quick]), strict=False):
        if name not in expected:
            alone, start = Run(folder / f"{name} alone", SETUPS[name]), time.monotonic()
            expected[name] = alone.finish()
            seconds[name] = time.monotonic() - start
            if expected[name] is None:
                raise RuntimeError(f"{name} fails without a kill:\n{(alone.folder / 'log.txt').read_text()[-2000:]}")
        run, ended = Run(folder / f"{name} {index}", SETUPS[name]), True
        while run.kills == 0:  # one that ends before its moment begins anew
            shutil.rmtree(run.folder, ignore_errors=True)
            ended = False
            while run.kills < MOST_KILLS and not ended:
                ended = run.wait(run.start(), draw.uniform(0, seconds[name]))
        difference = compare(expected[name], run.result() if ended else run.finish())
        left = run.left_behind()
        row = rows[name]
        row.runs, row.kills = row.runs + 1, row.kills + run.kills
        row.identical, row.clean = row.identical + (not difference), row.clean + (not left)
        tell(f"{index} {name}, kills: {run.kills}, different: {difference or 'nothing'}, left: {left or 'nothing'}")
        if not (difference or left):
            shutil.rmtree(run.folder)
    return dict(rows)


def main() -> int:
    """Print a table; 1 if a run did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="how many, all set-ups together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--setups", nargs="*", default=list(SETUPS), metavar="NAME", help="which")
    arguments = parser.parse_args()
    quieten()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    rows = measure(arguments.setups, arguments.runs, arguments.seed, folder)
    print(f"{'set-up':22}{'runs':>6}{'kills':>7}{'identical':>11}{'nothing left':>14}")
    for name, row in rows.items():
        print(f"{name:22}{row.runs:6}{row.kills:7}{row.identical:11}{row.clean:14}")
    totals = [sum(getattr(row, key) for row in rows.values()) for key in ("runs", "kills", "identical", "clean")]
    print(f"{'all':22}{totals[0]:6}{totals[1]:7}{totals[2]:11}{totals[3]:14}")
    sound = totals[2] == totals[3] == totals[0]
    if sound:
        shutil.rmtree(folder)
    return not sound


def quieten():
    """No thread before a fork, and nothing of Lightning's on the terminal."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
