import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lightning_robust.deployment.graph.export import ExportError, export, frozen_copy
from lightning_robust.deployment.graph.session import Session

from ..models import Detection, SmallCNN, Structured, images


def run(exported, *arrays):
    session = onnxruntime.InferenceSession(exported.model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = dict(zip(exported.inputs, arrays, strict=True))
    return [torch.from_numpy(array) for array in session.run(list(exported.outputs), feed)]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_matches_reference_at_any_batch(batch):
    """fp32 sums in another order: 1e-5 of outputs of size 1 is ten times what is seen."""
    module = frozen_copy(SmallCNN())
    exported = export(module, (images(2),))
    x = images(batch, seed=1)
    torch.testing.assert_close(run(exported, x.numpy())[0], module(x), rtol=0, atol=1e-5)


class ByName(nn.Linear):
    def forward(self, image, *, gain):
        return super().forward(image) * gain


def test_inputs_that_are_taken_by_name_alone():
    module, image, gain = ByName(3, 2), torch.rand(4, 3), torch.rand(4, 1)
    exported = export(frozen_copy(module), (image, gain))
    torch.testing.assert_close(run(exported, image.numpy(), gain.numpy())[0], module(image, gain=gain))


def test_live_module_is_not_touched():
    live = SmallCNN().train()
    live.stem[1].eval()
    before = {name: (p.clone(), p.dtype) for name, p in live.state_dict().items()}
    modes = {name: m.training for name, m in live.named_modules()}
    export(frozen_copy(live), (images(2),))
    assert {name: m.training for name, m in live.named_modules()} == modes
    for name, value in live.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.dtype == before[name][1]
    assert all(p.requires_grad for p in live.parameters())


def test_no_dropout_and_no_batchnorm_are_left():
    exported = export(frozen_copy(SmallCNN().train()), (images(2),))
    kinds = {node.op_type for node in exported.model.graph.node}
    assert not kinds & {"Dropout", "BatchNormalization"}
    assert "Conv" in kinds


def test_nodes_map_to_modules_and_source_lines():
    exported = export(frozen_copy(SmallCNN()), (images(2),))
    by_kind = {node.op_type: exported.origins[node.name] for node in exported.model.graph.node}
    assert by_kind["Conv"].module in ("stem.0", "stem.1")
    assert by_kind["Gemm"].module == "head"
    assert by_kind["Gemm"].source.startswith("models.py:")


def test_shipped_graph_tells_nothing_of_the_machine():
    blob = export(frozen_copy(SmallCNN()), (images(2),)).model.SerializeToString()
    assert b".py" not in blob
    assert b"stack_trace" not in blob


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_structures_in_and_out(kind):
    module = frozen_copy(Structured(kind))
    args = ({"x": torch.rand(3, 3)}, torch.rand(3, 1))
    exported = export(module, args)
    outputs = run(exported, args[0]["x"].numpy(), args[1].numpy())
    expected = module(*args)
    if isinstance(expected, Detection):
        expected = vars(expected)
    names = list(expected) if isinstance(expected, dict) else ["output.0", "output.1"]
    assert list(exported.outputs) == names
    values = expected.values() if isinstance(expected, dict) else expected
    for got, wanted in zip(outputs, values, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_opset_and_single_file():
    model = export(frozen_copy(SmallCNN()), (images(2),)).model
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if o.domain == ""] == [20]
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)


def test_rejects_unknown_operator():
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.raises(ExportError, match=r"linalg.*test_export\.py:\d+"):
        export(Inverse(), (torch.eye(3).expand(2, 3, 3).contiguous(),))


def test_rejects_fixed_batch():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, 3, 1) * 2

    with pytest.raises(ExportError, match="batch"):
        export(Fixed(), (torch.rand(2, 3),))


class Unrolled(nn.Module):
    """A loop over the samples, as sets of boxes are often matched."""

    def forward(self, x):
        return torch.stack([(row - row.mean()) * 2 for row in x])


class Counted(nn.Module):
    """The batch as a Python number."""

    def forward(self, x):
        queries = torch.arange(4.0).expand(int(x.shape[0]), 4)
        return torch.cat([x.sum(1, keepdim=True), queries], 1)


@pytest.mark.parametrize("module", [Unrolled(), Counted()])
def test_a_fixed_batch_is_exported_for_one_sample(module):
    """And a session runs it for each sample: the outputs of the module on the whole batch."""
    x = torch.rand(5, 3)
    exported = export(module, (x,))
    (output,) = Session(exported.model).run({"input": x.numpy()})
    torch.testing.assert_close(output, module(x), rtol=0, atol=1e-6)
    assert exported.batch == 1
    assert exported.notes[0].startswith("Exported for one sample, and run sample by sample. The graph fixes")


def test_a_dynamic_batch_has_no_note():
    exported = export(nn.Linear(3, 1), (torch.rand(5, 3),))
    assert (exported.batch, exported.notes) == (None, ())
    assert exported.seconds > 0


def test_one_sample_gives_a_graph_for_one_and_none_is_refused():
    exported = export(frozen_copy(SmallCNN()), (images(1),))
    assert exported.batch == 1
    assert exported.notes == ("Exported for one sample, since only one was given. Give two or more.",)
    with pytest.raises(ValueError, match="Expected a sample to export with, but got none"):
        export(SmallCNN(), (images(2)[:0],))
