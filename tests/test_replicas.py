"""Every technique on two processes (DDP) against one process, by its definition.

What draws no random numbers does with half of every batch on each process what it does with whole batches. What does
draws by its seed, its step and its rank: with the same batches and the same draws two processes are one.
"""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from .boring import Pictures, RobustBoring, make_trainer
from .distributed import on_ranks
from .test_contract import CALLBACKS, OBJECTIVES

EXACT = {
    "_adversarial": {"method": "fgsm", "val_eps": []},
    "_free": {"val_eps": []},
    "_initialise": {"method": "orthogonal", "tolerance": None},
    "_rotation": {},
    "_soup": {},
    "_swa": {},
    "_wise_ft": {},
}
"""What draws nothing, with the settings by which that is so."""
pytestmark = pytest.mark.filterwarnings("ignore")


class Shared(RobustBoring):
    """Every mixin; rank r of n takes every n-th picture from r on, or all of them."""

    def __init__(self, form="tuple", **settings):
        super().__init__(**({"batch_form": form} | settings))
        # statistics of a batch are those of its rank, and so is what dropout draws
        self.net[1], self.net[4] = nn.GroupNorm(2, 4), nn.Identity()
        self.halves = False

    @property
    def global_rank(self):
        """Mixins draw by it."""
        return 0

    def _loader(self, pictures):
        ranks = self.trainer.world_size if self.halves else 1
        part = Subset(pictures, range(self.trainer.global_rank % ranks, len(pictures), ranks))
        return DataLoader(part, 16 // ranks, collate_fn=super()._loader(pictures).collate_fn)

    def train_dataloader(self):
        """As that of the host, without labels where a mixin needs that."""
        pictures = Pictures(16)
        if self.uat_ot_weight + self.uat_ft_weight > 0:
            pictures.labels = torch.where(torch.arange(16) % 4 < 3, pictures.labels, -1)
        return self._loader(ConcatDataset([pictures] * 4))


class SameDraws(pl.Callback):
    """Callbacks draw on every rank as rank 0 does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for callback in trainer.callbacks:
            if getattr(callback, "_low", None) is not None:
                callback._low._rank = 0
            if hasattr(callback, "attack"):
                callback.seed = -trainer.global_rank


def fit(folder, world, technique, settings, halves):
    """Weights and metrics of two epochs."""
    torch.manual_seed(0)
    strategy = "auto" if world == 1 else DDPStrategy(process_group_backend="gloo")
    callbacks, model = technique.parts(host=Shared, **settings)
    model.halves = halves
    order = {"use_distributed_sampler": False, "devices": world, "strategy": strategy}
    trainer = make_trainer(folder, [SameDraws(), *callbacks], **order)
    trainer.fit(model)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    timed = ("seconds", "time_share")
    return dict(model.state_dict()), {name: value for name, value in metrics.items() if not name.endswith(timed)}


def check_is_one(technique, folder, settings, *, halves):
    state, metrics = fit(folder / "one", 1, technique, settings, halves)
    for other, numbers in on_ranks(2, folder, fit, folder / "two", 2, technique, settings, halves):
        assert max((other[name] - tensor).abs().max().item() for name, tensor in state.items()) <= 1e-6
        apart = {"train/loss", "adversarial/guard_ratio"} if halves else set()  # of the rank, of the rank's draws
        expected = {name: value for name, value in metrics.items() if name not in apart}
        assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-7, nan_ok=True)
    return state


@pytest.mark.parametrize("technique", [*CALLBACKS, *OBJECTIVES], ids=lambda row: row.make.__name__)
def test_same_batches_and_draws_are_one_process(technique, tmp_path):
    check_is_one(technique, tmp_path, {}, halves=False)


@pytest.mark.parametrize(
    "technique",
    [row for row in [*CALLBACKS, *OBJECTIVES] if row.make.__name__ in EXACT],
    ids=lambda row: row.make.__name__,
)
def test_halves_of_batches_are_one_process(technique, tmp_path):
    check_is_one(technique, tmp_path, EXACT[technique.make.__name__], halves=True)


def test_terms_that_one_rank_never_meets(tmp_path):
    """Rank 0 has no picture without a label, and logs no such term: its ranks once waited for each other here."""
    (uat,) = (row for row in OBJECTIVES if row.make.__name__ == "_uat")
    ranks = on_ranks(2, tmp_path, fit, tmp_path, 2, uat, {}, True)
    assert ranks[0][1]["uat/ot"] == ranks[1][1]["uat/ot"] > 0
