"""Techniques on weights that lie in parts on two ranks (FSDP2): the same training as on two replicas (DDP)."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialCallback, DeploymentParityCallback, RobustValidationCallback

from .boring import RobustBoring, make_trainer
from .distributed import on_ranks

ADVERSARIAL = {
    "fgsm": {},
    "fgsm_rs": {},
    "nfgsm": {},
    "pgd": {"steps": 2, "ratio": 0.5},
    "free": {"steps": 2},
    "trades": {"steps": 2},
    "mart": {"steps": 2, "target_key": 1},
}
MIXINS = {
    "regmixup": {"regmixup_weight": 1.0},
    "rotation": {"rotation_weight": 0.5, "rotation_turns": "all"},
    "uat": {"uat_ot_weight": 1.0, "uat_ft_weight": 1.0, "uat_target": "ema", "uat_steps": 2, "uat_half_life": 3},
    "preprocessing": {"preprocessing_weight": 1.0, "preprocessing_entries": "all", "preprocessing_draw": "worst"},
}
VALIDATION = {"eps": [0.1], "steps": 2, "under": ["rain@4", "jpeg"]}


class Parts(RobustBoring):
    """Every mixin; FSDP2 where the strategy gives a mesh."""

    def __init__(self, sharded="", **settings):
        super().__init__(**settings)
        self.sharded = sharded
        # DDP would share running statistics, and dropout draws as layers are called
        self.net[1], self.net[4] = nn.GroupNorm(2, 4), nn.Identity()

    def configure_model(self):
        if self.device_mesh is None or any(isinstance(each, DTensor) for each in self.parameters()):
            return
        for layer in self.get_submodule(
            self.sharded
        ).modules():  # each by itself, since mixins call parts of the network, as `features`
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Words(pl.LightningModule):
    """A classifier of eight words each."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def configure_model(self):
        if self.device_mesh is not None and not isinstance(self.head, FSDPModule):
            for layer in (self.embedding, self.head):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def forward(self, words):
        return self.head(self.embedding(words).tanh().mean(1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        draw = torch.Generator().manual_seed(self.global_rank)
        words, labels = torch.randint(11, (32, 8), generator=draw), torch.randint(3, (32,), generator=draw)
        return DataLoader(TensorDataset(words, labels), 8)


def fit(folder, strategy, callback=None, options=None, module=None, host=Parts):
    """Weights and metrics after two epochs on two ranks."""
    torch.manual_seed(0)
    chosen = ModelParallelStrategy(2, 1) if strategy == "parts" else DDPStrategy(process_group_backend="gloo")
    callbacks = [] if callback is None else [callback(**options)]
    trainer = make_trainer(folder, callbacks, strategy=chosen, devices=2, use_distributed_sampler=host is Parts)
    model = host(**(module or {}))
    trainer.fit(model)
    state = {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach() for n, t in model.state_dict().items()}
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return state, {name: value for name, value in metrics.items() if not name.endswith(("seconds", "time_share"))}


def check_same_as_replicas(folder, *given):
    parts, replicas = (on_ranks(2, folder, fit, folder, strategy, *given) for strategy in ("parts", "ddp"))
    for (state, metrics), (expected, numbers) in zip(parts, replicas, strict=True):
        weights = [name for name in expected if "running" not in name]  # DDP shares them, FSDP2 leaves each its own
        assert max((state[name] - expected[name]).abs().max().item() for name in weights) <= 1e-6
        assert metrics == pytest.approx(numbers, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_adversarial_training(tmp_path, method):
    settings = {"eps": 0.1, "method": method, "val_eps": [0.1], "val_steps": 2, **ADVERSARIAL[method]}
    check_same_as_replicas(tmp_path, AdversarialCallback, settings)


@pytest.mark.parametrize("method", [{"method": "fgm"}, {"method": "freelb", "steps": 2}], ids=["fgm", "freelb"])
def test_adversarial_training_on_words(tmp_path, method):
    settings = {"eps": 0.1, "embedding": "embedding", "val_eps": [], **method}
    check_same_as_replicas(tmp_path, AdversarialCallback, settings, None, Words)


def test_robust_validation(tmp_path):
    check_same_as_replicas(tmp_path, RobustValidationCallback, VALIDATION)


@pytest.mark.parametrize("mixin", MIXINS)
def test_mixins(tmp_path, mixin):
    check_same_as_replicas(tmp_path, None, None, MIXINS[mixin])


@pytest.mark.filterwarnings("ignore")
def test_parity_gathers_on_rank_zero(tmp_path):
    """The distance of the whole model, as of a replica; the other rank keeps nothing of it."""
    settings = {"targets": ["torch-bf16", "onnxruntime-fp32"], "perturbations": ["brightness"], "num_samples": 4}
    check_same_as_replicas(tmp_path, DeploymentParityCallback, settings)


@pytest.mark.parametrize("settings", [{"method": "awp"}, {"method": "fgsm_rs", "on_collapse": "rollback"}])
def test_refuses_what_needs_whole_weights(tmp_path, settings):
    for said in on_ranks(2, tmp_path, fit, tmp_path, "parts", AdversarialCallback, {"eps": 0.1, **settings}):
        name, value = list(settings.items())[-1]
        assert said.startswith(
            "MisconfigurationException: Expected a strategy in which each rank holds the whole model"
        )
        assert f"{name}={value!r} cannot work with" in said


def test_refuses_a_head_that_is_not_sharded(tmp_path):
    """FSDP2 averages the gradients of what it shards alone; ranks would drift apart in the rest."""
    for said in on_ranks(2, tmp_path, fit, tmp_path, "parts", None, None, MIXINS["rotation"] | {"sharded": "net"}):
        assert said.startswith("MisconfigurationException: Expected every parameter that is trained to be sharded")
        assert "rotation" in said
