"""A table of faults: what breaks, in which technique, and how it is planted. What becomes of a fit is tested beside."""

import errno
import itertools
import os
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_robust import (
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust.callbacks.deployment_parity import record
from lightning_robust.deployment.engines import Built, Runtime, abilities, run_module, targets
from tests.boring import Boring, Pictures
from tests.deployment.engines import builds

WORDS = "planted"
PARITY = "lightning_robust.callbacks.deployment_parity"
DEPLOYMENT = "lightning_robust.deployment"
CALLBACKS = "lightning_robust.callbacks"
HARNESS = "lightning_robust.harness"


def os_error(number):
    return OSError(number, f"{os.strerror(number)} ({WORDS})")


ERRORS = {
    "ValueError": ValueError(WORDS),
    "RuntimeError": RuntimeError(WORDS),
    "host out of memory": MemoryError(WORDS),
    "device out of memory": torch.OutOfMemoryError(WORDS),
    "recursion": RecursionError(WORDS),
    "ENOSPC": os_error(errno.ENOSPC),
    "EROFS": os_error(errno.EROFS),
    "EACCES": os_error(errno.EACCES),
    "EMFILE": os_error(errno.EMFILE),
    "EPIPE": os_error(errno.EPIPE),
    "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, WORDS),
    "KeyError": KeyError(WORDS),
    "AttributeError": AttributeError(WORDS),
    "division": ZeroDivisionError(WORDS),
    "assertion": AssertionError(WORDS),
    "not implemented": NotImplementedError(WORDS),
    "end of an iterator": StopIteration(WORDS),
    "import": ImportError(WORDS),
    "a warning as an error": UserWarning(WORDS),
}


class Task(Boring):
    """With a task of its own: scores, of which it knows those above zero."""

    def decode(self, outputs):
        return {"score": outputs}

    def known(self, values, batch):
        return values["score"] > 0

    def moved(self, values, matrix):
        return values


class TwoDays(Boring):
    """Validates on two loaders, of which the second is darker: there is something to interpolate for."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/loss", self._loss(batch), batch_size=len(batch[0]))

    def val_dataloader(self):
        dark = Pictures()
        dark.images *= 0.3
        return [self._loader(Pictures()), self._loader(dark)]


def parity(targets=("torch-bf16",), **settings):
    """A fast pass: no graph, one perturbation, nothing after the fit but another pass on more samples."""
    defaults = {"perturbations": ["bgr", "shift_one_pixel"], "num_samples": 8, "pass_samples": 4, "localise": False}
    return DeploymentParityCallback(list(targets), **(defaults | {"time_limit": 5.0} | settings))


def examined(**settings):
    """With a graph, and with the layers, the page and the summary after the fit."""
    return parity(["emulated-fp16"], **({"perturbations": "none", "localise": True, "num_samples": 4} | settings))


TECHNIQUES = {
    "parity": parity,
    "greedy_soup": lambda: GreedySoupCallback(top_k=2, monitor="val/loss", mode="min"),
    "wise_ft": lambda: WiSEFTCallback(alphas=[0.5], epsilon=1.0, monitor="val/loss", mode="min"),
    "criticality": lambda: LayerCriticalityCallback(monitor="val/loss", mode="min", rewind=False),
    "lazy": lambda: LazyTrainingCallback(num_samples=4, kernel_samples=2),
    "datapath": lambda: DatapathCallback(["pgd"], steps=1, num_samples=4, num_paths=2),
    "robust_validation": lambda: RobustValidationCallback(eps="8/255", steps=1, under="fog@3"),
    "swa": lambda: SWACallback(start=1),
}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        name: Of the test.
        plant: Given pytest's monkeypatch and the folder of the run, breaks it.
        technique: Makes the callback.
        module: Makes the module.
        logger: Makes the logger from a folder; False for none.
        says: What the user reads of it, in a warning, in the terminal or in the report; "" if there is nothing to say.
        ends: What leaves `fit`, where the run is meant to end.
        like: What the fit is compared with: one without the technique, or a healthy one with it.
        epochs: Of the fit.
    """

    name: str
    plant: Callable[[Any, Path], None] = lambda patch, folder: None
    technique: Callable[[], pl.Callback] = parity
    module: Callable[[], pl.LightningModule] = Task
    logger: Callable[[Path], Logger] | bool = False
    says: str = WORDS
    ends: type[BaseException] | None = None
    like: str = "plain"
    epochs: int = 1


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


def breaks(place, error):
    """Whatever has this dotted name raises when it is called."""
    return lambda patch, folder: patch.setattr(place, raises(error))


def all_of(*plants):
    return lambda patch, folder: [plant(patch, folder) for plant in plants]


# Every step of a parity pass, of the report after the fit and of what is logged.

SEAMS = {
    "copy of the weights": f"{PARITY}.measure.state_on_cpu",
    "first inputs": f"{HARNESS}.samples.positional_arguments",
    "frozen copy": f"{PARITY}.measure.frozen_copy",
    "task": f"{PARITY}.measure.task_of",
    "names of targets": f"{PARITY}.measure.available",
    "ability": f"{DEPLOYMENT}.engines.base.Runtime.can_build",
    "runtime": f"{DEPLOYMENT}.engines.torch.TorchRuntime.build",
    "reference": f"{DEPLOYMENT}.parity.measure.Baseline",
    "distance": f"{DEPLOYMENT}.parity.baseline.measure_distance",
    "interval": f"{DEPLOYMENT}.parity.baseline.intervals",
    "chain": f"{DEPLOYMENT}.parity.measure.find_chain",
    "normalisation": f"{PARITY}.measure.pixel_space",
    "perturbation": f"{DEPLOYMENT}.pixels.perturb.KeptPixels.perturb",
    "figure": f"{PARITY}.report.draw_families",
    "table": f"{PARITY}.report.target_rows",
    "summary": f"{PARITY}.record.summary",
    "layout": f"{CALLBACKS}.diagnostics.write_layout",
    "saving a figure": "matplotlib.figure.Figure.savefig",
}
SHOWN = {"figure", "table", "layout", "saving a figure"}
AFTER = {
    "export": f"{DEPLOYMENT}.graph.keeper.GraphKeeper.export",
    "lint": f"{DEPLOYMENT}.engines.subject.Subject.findings",
    "session": f"{DEPLOYMENT}.graph.session.Session.__init__",
    "emulation": f"{DEPLOYMENT}.engines.emulated.EmulatedRuntime.build",
    "digest": f"{PARITY}.measure.digest",
    "head": f"{PARITY}.measure.examine_head",
    "localisation": f"{PARITY}.measure.localise",
    "keep list": f"{DEPLOYMENT}.parity.localise.find_keep_list",
    "figure of layers": f"{PARITY}.report.draw_costs",
    "table of layers": f"{PARITY}.report.layer_rows",
    "kept checkpoints": f"{PARITY}.record.kept_elsewhere",
    "room": f"{PARITY}.record.require_room",
    "page": f"{PARITY}.record.write_report",
    "figures of the page": f"{DEPLOYMENT}.report.page.svg",
    "json of the page": f"{DEPLOYMENT}.report.page.jsonable",
}


def seams():
    """Each seam with one error, each error at a seam or two."""
    errors = itertools.cycle(ERRORS.items())
    for (seam, place), (name, error) in zip(SEAMS.items(), errors, strict=False):
        logger = CSVLogger if seam in SHOWN else False
        yield Fault(f"{seam}: {name}", breaks(place, error), logger=logger)
    for (seam, place), (name, error) in zip(AFTER.items(), errors, strict=False):
        yield Fault(f"{seam}: {name}", breaks(place, error), examined, logger=CSVLogger)


def copies():
    """Each error where the weights are copied, which is in the middle of a validation."""
    for name, error in ERRORS.items():
        yield Fault(f"copy of the weights, always: {name}", breaks(SEAMS["copy of the weights"], error))


# What a user's module does.


def module(**methods):
    return lambda: type("Guest", (Task,), methods)()


def gives(value):
    return lambda self, *_: value


def user():
    for name in ("ValueError", "host out of memory", "recursion", "end of an iterator", "a warning as an error"):
        yield Fault(f"decode: {name}", module=module(decode=raises(ERRORS[name])))
    for name, value in {
        "nothing": None,
        "an empty dict": {},
        "text": {"score": "high"},
        "a list": [1.0],
        "other rows": {"score": torch.zeros(3, 2)},
        "a scalar": {"score": torch.tensor(1.0)},
    }.items():
        yield Fault(f"decode gives {name}", module=module(decode=gives(value)), says="")
    named = {"decode": lambda self, outputs: {"a$x^{$": outputs, "b_{$": outputs > 0}}
    formula = lambda: type("Formula", (Boring,), named)()  # noqa: E731
    yield Fault(
        "decode names a value by a broken formula",
        technique=examined,
        module=formula,
        logger=CSVLogger,
        says="parity.html",
    )
    nan = module(decode=lambda self, outputs: {"score": outputs * torch.nan})
    yield Fault("decode gives NaN alone", module=nan, says="")
    changed = module(decode=lambda self, outputs: {"score": outputs.mul_(2)})
    yield Fault("decode changes outputs in place", module=changed, says="")
    random = module(decode=lambda self, outputs: {"score": outputs + torch.rand(1)})
    yield Fault("decode draws random numbers", module=random, says="")
    yield Fault("known: KeyError", module=module(known=raises(ERRORS["KeyError"])))
    yield Fault("known gives another shape", module=module(known=gives(torch.zeros(7, 9))), says="")
    yield Fault("moved: RuntimeError", module=module(moved=raises(ERRORS["RuntimeError"])))
    yield Fault("moved gives nothing", module=module(moved=gives(None)), says="")


# Loggers, disks, libraries and warnings.


class Bare(Logger):
    """A logger of somebody's own, without a folder and without an experiment."""

    name = version = None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *_, **__):
        pass


class Placed(Bare):
    """One with a folder."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder / "run"
        self.folder.mkdir()

    @property
    def save_dir(self):
        return str(self.folder)


def writer(method, error):
    return breaks(f"torch.utils.tensorboard.writer.SummaryWriter.{method}", error)


def is_a_file(patch, folder):
    (folder / "lightning_logs").mkdir()
    (folder / "lightning_logs" / "version_0").write_text("")


def no_matplotlib(patch, folder):
    patch.setitem(__import__("sys").modules, "matplotlib.figure", None)


def loggers():
    yield Fault("add_figure: ENOSPC", writer("add_figure", ERRORS["ENOSPC"]), logger=TensorBoardLogger)
    yield Fault("add_figure: RuntimeError", writer("add_figure", ERRORS["RuntimeError"]), logger=TensorBoardLogger)
    yield Fault(
        "add_text: host out of memory", writer("add_text", ERRORS["host out of memory"]), logger=TensorBoardLogger
    )
    yield Fault("add_text: EROFS", writer("add_text", ERRORS["EROFS"]), logger=TensorBoardLogger)
    yield Fault("add_custom_scalars: EPIPE", writer("add_custom_scalars", ERRORS["EPIPE"]), logger=TensorBoardLogger)
    yield Fault(
        "add_custom_scalars: KeyError", writer("add_custom_scalars", ERRORS["KeyError"]), logger=TensorBoardLogger
    )
    yield Fault("a logger without an experiment", logger=lambda folder: Bare(), says="")
    yield Fault("no matplotlib", no_matplotlib, logger=CSVLogger, says="matplotlib")
    yield Fault(
        "the pictures' folder is a file",
        lambda patch, folder: (folder / "figures").write_text(""),
        logger=CSVLogger,
        says="",
    )


def other_folders():
    def removed(patch, folder):
        look = record.require_room

        def remove(path):
            shutil.rmtree(path)
            look(path)

        patch.setattr(record, "require_room", remove)

    yield Fault("the run's folder is removed", removed, examined, logger=Placed, says="parity.html")
    for name, settings in {"is full": {"free": 1 << 16}, "has no room for a page": {"free": (1 << 25) - 1}}.items():
        usage = SimpleNamespace(**settings)
        plant = lambda patch, folder, usage=usage: patch.setattr(shutil, "disk_usage", lambda path: usage)  # noqa: E731
        yield Fault(f"the disk {name}", plant, logger=TensorBoardLogger, says="which is kept for the training")
    denied = lambda patch, folder: patch.setattr(os, "access", lambda *_: False)  # noqa: E731
    yield Fault("the disk is read-only", denied, logger=TensorBoardLogger, says="Nothing can be written")


def strict(pattern):
    """Warnings of ours are errors, as with ``python -W error``."""
    return lambda patch, folder: warnings.filterwarnings("error", f"(?s).*{pattern}")


def warnings_as_errors():
    failing = all_of(strict("Callback"), breaks(SEAMS["runtime"], ERRORS["ValueError"]))
    yield Fault("a target that fails, warnings being errors", failing)
    missing = all_of(strict("Callback"), breaks(SEAMS["table"], ERRORS["ENOSPC"]))
    yield Fault("a table that fails, warnings being errors", missing, logger=CSVLogger)
    limits = {"tolerance": {"torch-bf16/max_abs": 1e-9}, "on_violation": "warn"}
    beyond = lambda: parity(**limits)  # noqa: E731
    yield Fault("a tolerance, warnings being errors", strict("Deployment parity"), beyond, says="is violated")
    unbuilt = lambda: parity(["torch-bf16", "tensorrt-fp16"])  # noqa: E731
    yield Fault("a missing target, warnings being errors", strict("tensorrt"), unbuilt, says="tensorrt-fp16")
    yield Fault("every warning an error in a table of figures", strict("could not store"), logger=CSVLogger, says="")


# Threads and children.


def no_thread(patch, folder):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "engine builds":
            raise RuntimeError(f"can't start new thread ({WORDS})")
        start(thread)

    patch.setattr(threading.Thread, "start", refuse)


class Engine(Runtime):
    """In the place of TensorRT."""

    slow = True

    def build(self, subject):
        return Built(lambda args: run_module(subject.module, args))


def engine(patch, folder):
    patch.setitem(targets.TARGETS, "tensorrt-fp16", Engine)


def background(**settings):
    return parity(["torch-bf16", "tensorrt-fp16"], background=True, perturbations="none", **settings)


def threads():
    yield Fault("no thread can be started", all_of(engine, no_thread), background)
    for what in ("_execute_all", "results"):
        place = f"{DEPLOYMENT}.parity.background._Job.{what}"
        yield Fault(f"{what} in the thread", all_of(engine, breaks(place, ERRORS["host out of memory"])), background)
    late = lambda patch, folder: patch.setattr(Engine, "build", lambda *_: time.sleep(0.4))  # noqa: E731
    yield Fault("an engine that is late", all_of(engine, late), lambda: background(time_limit=0.2), says="")


HANGS = "time"  # limit of a build, or not ready in time
BODIES = {
    "is killed": ("os.kill(os.getpid(), 9)", "SIGKILL"),
    "falls": ("os.kill(os.getpid(), 11)", "SIGSEGV"),
    "ends early": ("sys.exit(3)", "status 3"),
    "hangs": ("time.sleep(60)", HANGS),
    "ignores SIGTERM": ("import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)", HANGS),
    "says nothing": ("pass", "no readable result"),
    "writes half a result": ("open(spec['result'], 'w').write('{')", "no readable result"),
    "writes another result": ("json.dump({'status': 'splendid'}, open(spec['result'], 'w'))", "unknown status"),
    "writes an empty engine": (builds.GOOD.replace('b"engine"', 'b""'), ""),
}


def child(body):
    def plant(patch, folder):
        builds.script(folder, patch, body)
        patch.setattr(abilities, "library_version", lambda *_: "0")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    return plant


def engines(**settings):
    defaults = {"perturbations": "none", "time_limit": 0.7}
    return lambda: parity(["tensorrt_rtx-fp16"], **(defaults | settings))


def children():
    for beside in (False, True):
        where = " in the background" if beside else ""
        for name, (body, says) in BODIES.items():
            limit = {} if says == HANGS else {"time_limit": 10.0}  # a busy machine starts a child late
            yield Fault(f"a child{where} {name}", child(body), engines(background=beside, **limit), says=says)
    busy = raises(BlockingIOError(errno.EAGAIN, f"Resource temporarily unavailable ({WORDS})"))
    no_process = all_of(child(builds.GOOD), lambda patch, folder: patch.setattr(subprocess, "Popen", busy))
    yield Fault("no process can be started", no_process, engines())

    def blocked(patch, folder):
        child(builds.GOOD)(patch, folder)
        (folder / "cache").write_text("")

    yield Fault("the cache is a file", blocked, engines(), says="cannot be written")
    store = breaks(f"{DEPLOYMENT}.engines.cache.EngineCache.store", ERRORS["ENOSPC"])
    yield Fault("the cache is full", all_of(child(builds.GOOD), store), engines())

    def no_home(patch, folder):
        child(builds.GOOD)(patch, folder)
        patch.delenv("XDG_CACHE_HOME")
        patch.setattr("lightning_robust.deployment.engines.cache.default_directory", raises(RuntimeError(WORDS)))

    yield Fault("no home", no_home, engines())


# The other techniques.

HELPERS = {
    "greedy_soup": {
        "keeping an epoch": f"{CALLBACKS}.merging.greedy_soup.pantry.save_weights",
        "cooking": f"{CALLBACKS}.merging.greedy_soup.callback.cook_greedy",
    },
    "wise_ft": {
        "the curve": f"{CALLBACKS}.merging.wise_ft.callback.AlphaCurve",
        "the choice": f"{CALLBACKS}.merging.wise_ft.callback.choose_alpha",
    },
    "criticality": {
        "a moment": f"{CALLBACKS}.layer_criticality.trajectory.Trajectory.visit",
        "the map": f"{CALLBACKS}.layer_criticality.callback.CriticalityMapper",
        "the file": f"{CALLBACKS}.layer_criticality.callback.criticality_json",
        "the figure": f"{CALLBACKS}.layer_criticality.callback.criticality_report",
    },
    "lazy": {
        "the start": f"{CALLBACKS}.lazy_training.callback.weights_of",
        "the probe": f"{CALLBACKS}.lazy_training.probe.Probe.keep",
        "the measurement": f"{CALLBACKS}.lazy_training.callback.measure_laziness",
        "the report": f"{CALLBACKS}.lazy_training.callback.lazy_report",
    },
    "datapath": {
        "the probe": f"{CALLBACKS}.datapath.callback.DatapathProbe",
        "the report": f"{CALLBACKS}.datapath.callback.datapath_report",
    },
    "robust_validation": {
        "the attack": f"{CALLBACKS}.robust_validation.measure.AttackedEvaluation.metrics",
        "the corruptions": f"{CALLBACKS}.robust_validation.corrupted.CorruptedValidation.measure",
        "its file": f"{CALLBACKS}.robust_validation.corrupted.CorruptedValidation.write",
        "the evaluation": f"{HARNESS}.evaluate.Evaluator.metrics",
    },
}


GAINS = {
    "greedy_soup": {
        "its file": f"{CALLBACKS}.merging.greedy_soup.callback.save_chosen",
        "its report": f"{CALLBACKS}.merging.greedy_soup.callback.report_soup",
    },
    "wise_ft": {
        "its file": f"{CALLBACKS}.merging.wise_ft.callback.save_chosen",
        "its report": f"{CALLBACKS}.merging.wise_ft.callback.report_wise_ft",
    },
    "swa": {"the raw weights' metrics": f"{HARNESS}.evaluate.Evaluator.metrics"},
}
"""Here the technique has done its work before, and the module holds what a healthy run gives."""


def others():
    errors = itertools.cycle(ERRORS.items())
    for technique, places in HELPERS.items():
        for (what, place), (name, error) in zip(places.items(), errors, strict=False):
            yield Fault(f"{technique}, {what}: {name}", breaks(place, error), TECHNIQUES[technique], logger=CSVLogger)
    for technique, places in GAINS.items():
        for (what, place), (name, error) in zip(places.items(), errors, strict=False):
            make = TECHNIQUES[technique]
            module = TwoDays if technique == "wise_ft" else Task
            healthy = {"module": module, "like": "healthy", "epochs": 2}
            yield Fault(f"{technique}, {what}: {name}", breaks(place, error), make, **healthy)


TABLE = [
    *(*seams(), *copies(), *user()),
    *(*loggers(), *other_folders(), *warnings_as_errors()),
    *(*threads(), *children(), *others()),
]
