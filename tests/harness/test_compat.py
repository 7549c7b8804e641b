"""One test for each private or internal name of Lightning and torch: it fails when the name moves or changes."""

import ast
import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

import lightning_robust
from lightning_robust import torch_names
from lightning_robust.deployment.graph.frozen import frozen_copy
from lightning_robust.harness import compat

from ..boring import Boring, Pictures, make_trainer
from ..distributed import on_ranks

PACKAGE = Path(lightning_robust.__file__).parent
HOLDERS = {PACKAGE / "harness/compat.py", PACKAGE / "torch_names.py"}


def test_takes_batch_index():
    class Host:
        def alone(self, batch): ...
        def pair(self, batch, i): ...
        def anything(self, *args): ...

    host = Host()
    assert [compat.takes_batch_index(step) for step in (host.alone, host.pair, host.anything)] == [False, True, True]


def test_overrides():
    class Data(pl.LightningDataModule):
        def on_before_batch_transfer(self, batch, dataloader_idx): ...

    assert compat.overrides(Boring(), "validation_step")
    assert not compat.overrides(Boring(), "test_step")
    assert compat.overrides(Data(), "on_before_batch_transfer")
    assert not compat.overrides(Data(), "train_dataloader")


def test_version_of():
    tensor = torch.zeros(1)
    before = compat.version_of(tensor)
    tensor.add_(1)
    assert compat.version_of(tensor) == before + 1
    assert compat.version_of("text") == 0
    with torch.inference_mode():
        assert compat.version_of(torch.zeros(1)) == 0


def test_default_store():
    assert compat.default_store() is None
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        store = compat.default_store()
        store.set("key", "value")
        assert (store.check(["key"]), store.check(["another"]), store.get("key")) == (True, False, b"value")
        assert [store.add("count", 1), store.add("count", 1)] == [1, 2]
    finally:
        torch.distributed.destroy_process_group()


def test_is_attached(tmp_path):
    module = Boring()
    assert not compat.is_attached(module)
    make_trainer(tmp_path, fast_dev_run=True).fit(module)
    assert compat.is_attached(module)


def test_is_compiled_as_lightning_module(tmp_path):
    found = []

    class Asks(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            found.append(compat.is_compiled_as_lightning_module(pl_module))

    whole, in_place, inner, plain = (Boring() for _ in range(4))
    inner.net.compile(backend="eager")
    in_place.compile(backend="eager")
    for module in (torch.compile(whole, backend="eager"), in_place, inner, plain):
        make_trainer(tmp_path, [Asks()], max_epochs=0).fit(module)
    assert found == [True, True, False, False]


def test_loaders_given_to_fit(tmp_path):
    class Ask(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            self.loaders = compat.loaders_given_to_fit(trainer)

    ask, loader = Ask(), DataLoader(Pictures(16), 16)
    make_trainer(tmp_path, [ask], fast_dev_run=True).fit(Boring(), loader)
    assert ask.loaders is loader
    make_trainer(tmp_path, [ask], fast_dev_run=True).fit(Boring())
    assert ask.loaders is None


def test_load_validation_data(tmp_path):
    class Ask(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            self.before = trainer.val_dataloaders
            compat.load_validation_data(trainer)
            self.first = trainer.val_dataloaders
            compat.load_validation_data(trainer)
            self.again = trainer.val_dataloaders

    ask = Ask()
    make_trainer(tmp_path, [ask], max_epochs=1).fit(Boring())
    assert ask.before is None
    assert isinstance(ask.first, DataLoader)
    assert ask.again is ask.first


def test_counts_of_batches(tmp_path):
    """Four batches an epoch: the seventh of the run is the third of its epoch; validations are logged at 3 and 7."""

    class Note(pl.Callback):
        def __init__(self):
            self.batches, self.logged = [], []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batches.append((compat.batches_before(trainer), compat.batch_in_epoch(trainer)))

        def on_validation_epoch_end(self, trainer, pl_module):
            self.logged.append(compat.logged_step(trainer))

    note = Note()
    make_trainer(tmp_path, [note]).fit(Boring())
    assert note.batches == [(index, index % 4) for index in range(8)]
    assert note.logged == [3, 7]


def test_silent_logger():
    logger = compat.silent_logger()
    assert isinstance(logger, Logger)
    logger.log_metrics({"a": 1.0}, 3)
    logger.experiment.add_scalar("a", 1.0, 3)


def test_attributes_of_lightning_and_metrics_are_internal():
    assert {"_trainer", "_modules", "_hparams", "_defaults", "_reductions", "training"} <= compat.internal_attributes()
    assert "queue" not in compat.internal_attributes()


def test_layers_of_torch():
    found = [compat.is_layer_of_torch(each) for each in (nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Module(), Boring())]
    assert found == [True, True, False, False]


def test_buffers_and_parts_are_the_dicts_of_the_module():
    module = nn.Sequential(nn.ReLU())
    module.register_buffer("scale", torch.ones(1))
    compat.buffers_of(module)["scale"] = torch.zeros(1)
    assert float(module.scale) == 0.0
    twin = copy.copy(module)
    compat.set_parts(twin, {"0": nn.Tanh()})
    assert isinstance(twin[0], nn.Tanh)
    assert isinstance(compat.parts_of(module)["0"], nn.ReLU)


def test_hooks_are_the_dicts_of_the_module():
    layer, called = nn.ReLU(), []
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer(torch.zeros(1))
    before, after = compat.hooks_of(layer)
    before.clear()
    layer(torch.zeros(1))
    after.clear()
    layer(torch.zeros(1))
    assert called == ["before", "after", "after"]


def test_states_of_metric():
    assert compat.states_of_metric(MeanMetric()) == {"mean_value", "weight"}
    assert compat.states_of_metric(nn.Linear(1, 1)) == frozenset()


def test_forget_workers():
    loader = DataLoader(Pictures(16), 16, num_workers=1, persistent_workers=True)
    first = iter(loader)
    twin = copy.copy(loader)
    compat.forget_workers(twin)
    assert iter(loader) is first
    assert iter(twin) is not first


def test_compiler_is_loaded():
    torch.compile(nn.Linear(2, 2))
    assert compat.compiler_is_loaded()


def test_lerp_all_():
    starts = [torch.zeros(3), torch.ones(2, 2)]
    torch_names.lerp_all_(starts, [torch.ones(3), torch.full((2, 2), 5.0)], 0.25)
    assert [each.unique().tolist() for each in starts] == [[0.25], [2.0]]


def test_names_of_compiled_modules():
    linear = nn.Linear(2, 2)
    compiled = nn.ModuleDict({"net": torch.compile(linear)})
    assert torch_names.original_of_compiled(compiled["net"]) is linear
    assert torch_names.original_of_compiled(linear) is None
    names = [torch_names.without_compiled_prefix(name) for name in compiled.state_dict()]
    assert names == ["net.weight", "net.bias"]


def test_is_compiled():
    in_place = nn.Sequential(nn.Linear(2, 2))
    assert not torch_names.is_compiled(in_place)
    in_place[0].compile()
    assert torch_names.is_compiled(in_place)
    assert torch_names.is_compiled(nn.Sequential(torch.compile(nn.Linear(2, 2))))


def test_classes_of_layers():
    norms = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LazyBatchNorm2d}
    convolutions = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
    assert all(issubclass(each, torch_names.AnyBatchNorm) for each in norms)
    assert all(issubclass(each, torch_names.AnyConvolution) for each in convolutions)
    assert not issubclass(nn.GroupNorm, torch_names.AnyBatchNorm)
    assert not issubclass(nn.Linear, torch_names.AnyConvolution)


def sharded():
    """What the names say of a module before and after ``fully_shard``."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    layer = nn.Linear(2, 2)
    before = [len(hooks) for hooks in torch_names.hook_dicts(layer)]
    fully_shard(layer)
    hooks = [hook for hooks in torch_names.hook_dicts(layer) for hook in hooks.values()]
    states = {id(hook.__self__) for hook in hooks if torch_names.is_state_of_sharding(getattr(hook, "__self__", None))}
    frozen = frozen_copy(layer, {"weight": torch.eye(2), "bias": torch.ones(2)})
    left = [len(hooks) for hooks in torch_names.hook_dicts(frozen)]
    result = frozen(torch.tensor([[1.0, 2.0]])).tolist()
    return before, list(map(torch_names.is_hook_of_sharding, hooks)), len(states), left, type(frozen), result


def test_names_of_fully_shard(tmp_path):
    """All hooks of a sharded layer are known as its own, and a copy has none of them."""
    ((before, owned, states, left, cls, result),) = on_ranks(1, tmp_path, sharded)
    assert before == left == [0] * 6
    assert owned
    assert all(owned)
    assert states == 1
    assert cls is nn.Linear
    assert result == [[2.0, 3.0]]


def test_writes_parts():
    assert compat.writes_parts(ModelParallelStrategy())
    assert not compat.writes_parts(ModelParallelStrategy(save_distributed_checkpoint=False))
    assert not compat.writes_parts(DDPStrategy())


def test_compat_names_what_the_rooms_below_need():
    assert {*torch_names.__all__} <= vars(compat).keys()


# names of modules that Lightning documents for users, though they live under `utilities`
DOCUMENTED = {
    "lightning.fabric.utilities.exceptions",
    "lightning.pytorch.utilities",
    "lightning.pytorch.utilities.data",
    "lightning.pytorch.utilities.seed",
    "lightning.pytorch.utilities.types",
}
LOOPS = {"fit_loop", "epoch_loop", "val_loop", "validate_loop", "test_loop", "predict_loop"}
HIDDEN_TEXT = ("_orig_mod", "_compiled_call_impl", "torch._dynamo")
NOT_PRIVATE = {"_asdict", "_fields", "_make", "_exit"}  # of NamedTuples and os, documented


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_"))


def is_internal(module):
    library, *rest = module.split(".")
    if library not in ("lightning", "torch"):
        return False
    private = any(part.startswith("_") and part != "__future__" for part in rest)
    return private or (library == "lightning" and "utilities" in rest and module not in DOCUMENTED)


def private_attributes(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (node.attr in LOOPS or is_private(node.attr)):
            yield node.attr


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in NOT_PRIVATE


def names_of_our_own():
    """Everything that the package itself defines: functions, classes, variables, attributes, arguments."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.attr if isinstance(node, ast.Attribute) else node.id


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_uses_private_names(path):
    if path in HOLDERS:
        return
    text = path.read_text()
    tree = ast.parse(text)
    assert not [module for module in imported_modules(tree) if is_internal(module)]
    own = OWN - HIDDEN if path.is_relative_to(PACKAGE / "mixins") else OWN
    assert not [name for name in private_attributes(tree) if name in LOOPS or name not in own]
    assert not [name for name in HIDDEN_TEXT if f'"{name}' in text]


OWN = set(names_of_our_own())
HIDDEN = {name for name in dir(pl.LightningModule()) if is_private(name)}


def test_the_search_for_private_names_finds_them():
    source = "import torch._dynamo\nfrom lightning.pytorch.utilities.model_helpers import is_overridden\n"
    source += "trainer.fit_loop.epoch_loop._batches_that_stepped\nself._trainer\nself._weights\n"
    tree = ast.parse(source)
    assert [module for module in imported_modules(tree) if is_internal(module)] == [
        "torch._dynamo",
        "lightning.pytorch.utilities.model_helpers",
    ]
    assert sorted(private_attributes(tree)) == [
        "_batches_that_stepped",
        "_trainer",
        "_weights",
        "epoch_loop",
        "fit_loop",
    ]
