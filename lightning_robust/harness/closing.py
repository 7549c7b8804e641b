"""The one summary at the end of a fit: what ran in which order, on which weights, its warnings, its files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_robust.harness.digest import digest
from lightning_robust.harness.pulse import Pulse
from lightning_robust.harness.trainers import find_callbacks, is_sharded, shows_progress
from lightning_robust.progress import hidden_progress

_heard: dict[str, None] = {}
"""Warnings since the Trainer's last entry point; the same words count once."""
_NAMED = 6  # files of a folder that are listed by name


class ClosingSummary(pl.Callback):
    """Gathers what techniques do in a run, and says it after a fit when the bars are gone; then it leaves the Trainer.

    Techniques bring it along by :func:`join_summary`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights = "the weights as trained"
        self.steps: dict[str, str] = {}
        self.texts: list[str] = []
        self.folders: dict[str, Path] = {}
        self._epoch: int | None = None
        self._known: tuple[str, int, str] = ("", 0, "")
        self._hidden = contextlib.ExitStack()
        self._pulse: Pulse | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Show no progress in a fit that shows none of its own, and give the other ranks signs of life."""
        self._pulse = self._pulse or Pulse(trainer)
        self._hidden.enter_context(hidden_progress(stage == "fit" and not shows_progress(trainer)))

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch as checkpoints count it; after the last one the Trainer counts on."""
        self._epoch = trainer.current_epoch

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the Trainer."""
        self._leave(trainer)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say it, and leave the Trainer."""
        if stage == "fit" and trainer.is_global_zero:
            for text in (*self.texts, self._summary(trainer, pl_module)):
                rank_zero_info(text)
        self._leave(trainer)

    def name_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """The weights that the module holds now, as ``the weights as trained (epoch 2, step 12, 9f2c51d0)``."""
        if self._known[:2] != (self.weights, trainer.global_step):
            short = "" if is_sharded(trainer) else digest(pl_module.state_dict())
            self._known = self.weights, trainer.global_step, short
        epoch = "" if self._epoch is None else f"epoch {self._epoch}"
        details = epoch, f"step {trainer.global_step}", self._known[2]
        return f"{self.weights} ({', '.join(filter(None, details))})"

    def _summary(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        steps = [f"{number}. {step}" for number, step in enumerate(self.steps.values(), 1)]
        parts = {
            "What ran, in this order": steps,
            "Warnings": list(_heard),
            "Files": [_list_files(folder) for folder in dict.fromkeys(self.folders.values()) if folder.is_dir()],
        }
        lines = ["", f"Closing summary. The module holds {self.name_weights(trainer, pl_module)}."]
        for title, entries in parts.items():
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return "\n".join(lines)

    def _leave(self, trainer: pl.Trainer) -> None:
        self._hidden.close()
        if self._pulse is not None:
            self._pulse.stop()
        # another list, since Lightning goes through the present one
        trainer.callbacks = [each for each in find_callbacks(trainer, pl.Callback) if each is not self]  # type: ignore[attr-defined]


def join_summary(trainer: pl.Trainer) -> ClosingSummary:
    """The summary of the Trainer's present run, which joins its callbacks; call it in ``setup``.

    Example:
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
        >>> join_summary(trainer) is join_summary(trainer)
        True
    """
    summaries: list[ClosingSummary] = find_callbacks(trainer, ClosingSummary)
    if not summaries:
        summaries = [ClosingSummary()]
        _heard.clear()
        trainer.callbacks.append(summaries[0])  # type: ignore[attr-defined]
    return summaries[0]


def note_step(
    trainer: pl.Trainer,
    technique: str,
    result: str,
    pl_module: pl.LightningModule | None = None,
    weights: str = "",
    *,
    latest: bool = False,
) -> None:
    """Remember what a technique did, for the end of the fit; outside of a fit it is printed at once.

    Args:
        trainer: The Trainer.
        technique: Its key in a configuration.
        result: What came out, in a few words.
        pl_module: Where the technique measured the weights that the module holds now: the module.
        weights: Where it measured others: their name.
        latest: Takes the place of what the technique said before.
    """
    if trainer.state.fn != "fit":
        rank_zero_info(f"{technique}: {result}")
    elif trainer.is_global_zero:
        summary = join_summary(trainer)
        measured = summary.name_weights(trainer, pl_module) if pl_module is not None else weights
        key = technique if latest else f"{technique} {len(summary.steps)}"
        summary.steps[key] = f"{technique}{f', on {measured}' if measured else ''}: {result}"


def note_weights(trainer: pl.Trainer, weights: str, technique: str = "") -> None:
    """The module holds other weights from now on.

    Args:
        trainer: The Trainer.
        weights: Names them, as ``"the average of 3 snapshots"``.
        technique: Has this step of its own in the summary; without it, what it measured says enough.
    """
    join_summary(trainer).weights = weights
    if technique:
        note_step(trainer, technique, f"the module holds {weights} from now on")


def note_text(trainer: pl.Trainer, text: str) -> None:
    """Print a text on rank 0: within a fit when the bars are gone, else at once."""
    if trainer.state.fn == "fit":
        join_summary(trainer).texts.append(text)
    else:
        rank_zero_info(text)


def note_warning(message: str) -> None:
    """Remember a sentence for the end of the fit; the same words count once."""
    _heard[message] = None


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn on rank 0, now and once more at the end of the fit.

    Where warnings are errors, as with ``python -W error``, it is printed instead: the error would end a training for
    what was only to be said of it, and on one rank alone.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error")
        ...     warn("there is no figure")
    """
    note_warning(message)
    try:
        rank_zero_warn(message, category=category, stacklevel=5)
    except Warning:
        rank_zero_info(f"{category.__name__}: {message}")


def _list_files(folder: Path) -> str:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return f"{folder}: {', '.join(names) if len(names) <= _NAMED else f'{len(names)} files'}"
