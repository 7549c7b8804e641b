"""Averages of weights that lie in parts on two and three ranks (FSDP2), against a run with whole weights."""

import shutil
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from lightning_robust import SWACallback
from lightning_robust.cli.trainer import RobustTrainer
from lightning_robust.harness.checkpoints import load_averaged, read_state
from lightning_robust.harness.kept_checkpoints import choose_checkpoint
from lightning_robust.harness.run_folder import locate_run
from tests.boring import make_trainer
from tests.distributed import Sharded, on_ranks

KINDS = {
    "uniform": {"start": 1},
    "ema": {"kind": "ema", "start": 0, "every": 1, "half_life": 2},
    "lawa": {"kind": "lawa", "start": 0, "every": 1, "window": 3},
    "also": {"start": 1, "also": {"fast": {"kind": "ema", "start": 0, "every": 1, "half_life": 1}}},
}
PLAIN = {"bn_refresh": False}
Fit = dict[str, object]


def strategy_for(world, kind="parts"):
    if kind == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if world == 1:
        return "auto"
    return ModelParallelStrategy(world, 1, save_distributed_checkpoint=kind == "parts")


def whole(state):
    """Every tensor of a state dict, gathered."""
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in state.items()}


class Validated(pl.Callback):
    """The weights that each validation ran on, read after it: reading them makes FSDP2 gather them anew."""

    def __init__(self):
        self.seen = []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.seen.append(whole(pl_module.state_dict()))


def fit(folder, world, settings, kind="parts", epochs=4, ckpt_path=None, **module):
    """Train; what the module held at each validation and at the end, the metrics, and where it is saved."""
    validated = Validated()
    saving = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = make_trainer(
        folder,
        [SWACallback(**settings), validated, saving],
        strategy=strategy_for(world, kind),
        devices=world,
        max_epochs=epochs,
        enable_checkpointing=True,
        use_distributed_sampler=False,  # which would shuffle
    )
    model = Sharded(**module)
    trainer.fit(model, ckpt_path=ckpt_path)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {"validated": validated.seen, "end": whole(model.state_dict()), "metrics": metrics}


def difference(first, second):
    """The largest one between two state dicts."""
    assert first.keys() == second.keys()
    return max((tensor - second[name]).abs().max().item() for name, tensor in first.items())


def check_same(many, one, tolerance=1e-7):
    """Two runs held the same weights at all validations that both have, and at the end, and found the same metrics."""
    epochs = min(len(many["validated"]), len(one["validated"]))
    assert epochs
    pairs = zip([*many["validated"][-epochs:], many["end"]], [*one["validated"][-epochs:], one["end"]], strict=True)
    assert max(difference(*pair) for pair in pairs) <= tolerance
    assert many["metrics"] == pytest.approx(one["metrics"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3])
def test_equals_whole_weights(tmp_path, world, kind):
    settings = KINDS[kind] | PLAIN
    expected = fit(tmp_path / "one", 1, settings, batchnorm=False)
    for rank in on_ranks(world, tmp_path, partial(fit, batchnorm=False), tmp_path / "many", world, settings):
        check_same(rank, expected)
    assert difference(expected["end"], expected["validated"][-1]) == 0
    assert difference(expected["end"], Sharded(batchnorm=False).state_dict()) > 1e-2


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("word_length", [None, 8], ids=["fp32", "swalp"])
def test_equals_replicas(tmp_path, word_length, world):
    """As under DDP: BatchNorm statistics are taken anew, from the batches of all ranks together; SWALP rounds weights,
    gradients and momentum by the same numbers on every rank, activations by those of the rank.
    """
    settings = {"start": 0, "bn_samples": 1000, "word_length": word_length}
    shards, replicas = (
        on_ranks(world, tmp_path, fit, tmp_path / kind, world, settings, kind) for kind in ("parts", "ddp")
    )
    for one, other in zip(shards, replicas, strict=True):
        check_same(one, other)
        assert difference(one["end"], shards[0]["end"]) == 0
    grid = shards[0]["validated"][0]["net.0.weight"] * 2.0**9
    assert torch.equal(grid, grid.round()) == (word_length is not None)


@pytest.fixture(scope="module", params=["parts", "file"])
def saved(request, tmp_path_factory):
    """A run on two ranks with its checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    ranks = on_ranks(2, folder, partial(fit, batchnorm=False), folder, 2, KINDS["also"] | PLAIN, request.param)
    return folder, ranks[0], request.param


def test_checkpoints_load_in_one_process(saved):
    """What was validated is what is saved, under the names of whole weights; raw weights and further averages too."""
    folder, run, kind = saved
    path = folder / "epoch=3.ckpt"
    assert path.is_dir() == (kind == "parts")
    assert difference(read_state(path), run["validated"][-1]) == 0
    model = Sharded(batchnorm=False)
    model.load_state_dict(load_averaged(path))
    raw, fast = load_averaged(path, "raw"), load_averaged(path, "fast")
    expected = fit(folder / "one", 1, KINDS["also"] | PLAIN, batchnorm=False)
    one = folder / "one" / "epoch=3.ckpt"
    assert difference(raw, load_averaged(one, "raw")) <= 1e-7
    assert difference(fast, load_averaged(one, "fast")) <= 1e-7
    assert difference(raw, run["end"]) > 1e-4
    check_same(run, expected)
    with pytest.raises(ValueError, match=r"Expected 'slow' in .*averaged.*(fast.*raw|raw.*fast)"):
        load_averaged(path, "slow")


@pytest.mark.parametrize("world", [2, 3])
def test_resumes_on_any_number_of_ranks(saved, tmp_path, world):
    folder, run, kind = saved
    work = partial(fit, ckpt_path=folder / "epoch=1.ckpt", batchnorm=False)
    for rank in on_ranks(world, tmp_path, work, tmp_path, world, KINDS["also"] | PLAIN, kind):
        check_same(rank, run, 0 if world == 2 else 1e-7)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_file_of_parts_goes_on_in_one_process_and_back(saved, tmp_path):
    folder, run, kind = saved
    if kind == "parts":
        pytest.skip("Lightning reads no folder in one process")
    check_same(fit(tmp_path, 1, KINDS["also"] | PLAIN, ckpt_path=folder / "epoch=1.ckpt", batchnorm=False), run)
    work = partial(fit, ckpt_path=tmp_path / "epoch=2.ckpt", batchnorm=False)
    for rank in on_ranks(2, tmp_path, work, tmp_path / "back", 2, KINDS["also"] | PLAIN, kind):
        check_same(rank, run)


def test_complete_run_holds_its_average(saved, tmp_path):
    """Nothing is left to train: the module ends with what was saved, not with the raw weights."""
    folder, run, kind = saved
    work = partial(fit, ckpt_path=folder / "epoch=3.ckpt", batchnorm=False)
    for rank in on_ranks(2, tmp_path, work, tmp_path, 2, KINDS["also"] | PLAIN, kind):
        assert difference(rank["end"], run["end"]) == 0


def test_missing_parts_are_named(saved, tmp_path):
    folder, _, kind = saved
    if kind == "file":
        pytest.skip("One file has no parts")
    for number, part in enumerate(("__1_0.distcp", "averages/__0_0.distcp")):
        copy = tmp_path / str(number)
        shutil.copytree(folder / "epoch=1.ckpt", copy)
        (copy / part).unlink()
        work = partial(fit, ckpt_path=copy, batchnorm=False)
        for said in on_ranks(2, tmp_path, work, tmp_path / "run", 2, KINDS["also"] | PLAIN):
            assert said.startswith("FileNotFoundError: Expected 2 parts")
            assert f"{Path(part).name} is missing" in said
    with pytest.raises(FileNotFoundError, match=r"__1_0\.distcp is missing"):
        read_state(tmp_path / "0")


class Counts(pl.Callback):
    """Collectives of the callback's own updates."""

    def __init__(self, swa):
        self.swa, self.counts = swa, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        average = self.swa.main
        with CommDebugMode() as communication:
            average.update(trainer, self.swa._averaged._weights.tensors())
        self.counts.append(communication.get_total_counts())


def updates(folder):
    swa = SWACallback(start=1, **PLAIN)
    counts = Counts(swa)
    trainer = make_trainer(
        folder, [swa, counts], strategy=strategy_for(2), devices=2, max_epochs=3, use_distributed_sampler=False
    )
    trainer.fit(Sharded(batchnorm=False))
    parts = [sum(each.numel() for each in swa.main.values), sum(p.numel() for p in swa._averaged._weights.live())]
    return counts.counts, parts


def test_updates_do_not_communicate_and_hold_one_part(tmp_path):
    ranks = on_ranks(2, tmp_path, updates, tmp_path)
    for counts, (part, all_) in ranks:
        assert counts == [0] * 6
        assert part < 0.6 * all_
    assert sum(parts[0] for _, parts in ranks) == ranks[0][1][1]


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning", "ignore:.*is worse than")
def test_soups_and_runs_read_sharded_checkpoints(saved, tmp_path):
    folder, _, _ = saved
    files = [folder / f"epoch={epoch}.ckpt" for epoch in (1, 3)]
    trainer = RobustTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    soup = trainer.soup(
        Sharded(batchnorm=False),
        ingredients=[str(folder / "epoch=[13].ckpt")],
        recipe="uniform",
        monitor="val/loss",
        mode="min",
        dirpath=str(tmp_path),
    )
    first, second = map(read_state, files)
    assert difference(soup.state, {name: (tensor + second[name]) / 2 for name, tensor in first.items()}) <= 1e-7
    assert choose_checkpoint(folder, "epoch=3")[0] == files[1]
    assert locate_run(None, str(files[1]), "configs/lanes.yaml").checkpoint == str(files[1])
