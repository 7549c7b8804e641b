"""What a run has measured so far; what becomes of it is tested with the callback."""

from types import SimpleNamespace

from lightning_robust.callbacks.deployment_parity.record import Numbers, ParityRecord
from lightning_robust.callbacks.deployment_parity.tags import STATUS
from tests.deployment.reports import report


def test_numbers_are_carried_and_the_status_of_a_pass_is_not():
    """Between two passes monitors see the last numbers; that a pass failed or not is of that pass alone."""
    record = ParityRecord()
    record.last = {STATUS: 4.0, "parity/torch-bf16/rel_l2": 0.25, "parity/torch-bf16/status": 0.0}
    trainer = SimpleNamespace(sanity_checking=False, callback_metrics={})
    record.carry(trainer)
    assert {tag: value.item() for tag, value in trainer.callback_metrics.items()} == {
        "parity/torch-bf16/rel_l2": 0.25,
        "parity/torch-bf16/status": 0.0,
    }
    checking = SimpleNamespace(sanity_checking=True, callback_metrics={})
    record.carry(checking)
    assert checking.callback_metrics == {}


def test_sensitivity_is_of_the_last_pass_that_has_one():
    """None before any pass, empty where none gave numbers; a failed pass and late engines change nothing."""
    trainer = SimpleNamespace(sanity_checking=False, callback_metrics={})
    record = ParityRecord()
    assert record.sensitivity is None
    record.fail(trainer)
    assert record.sensitivity == {}
    record.take(Numbers(sensitivity={"bgr": 2.0}))
    record.fail(trainer)
    record.take(Numbers({"parity/torch-bf16/rel_l2": 0.5}))
    assert record.sensitivity == {"bgr": 2.0}
    again = ParityRecord()
    again.load_state_dict(record.state_dict())
    assert again.sensitivity == {"bgr": 2.0}
    again.load_state_dict({"history": [], "last": {}})  # of earlier versions
    assert again.sensitivity is None


def test_the_history_begins_again_in_another_unit():
    """A detector that finds its first boxes in the third pass; that it knows some of them later is no other unit."""
    record = ParityRecord()
    units = ["rel_l2", "rel_l2", "boxes_centre_px_p99", "boxes_centre_px_known_p99"]
    for epoch, unit in enumerate(units):
        record.add(SimpleNamespace(report=report(unit=unit)), epoch, keep=False)
    assert [epoch for epoch, _ in record.history] == [2, 3]
    again = ParityRecord()
    again.load_state_dict(record.state_dict())
    again.add(SimpleNamespace(report=report(unit="boxes_centre_px_p99")), 4, keep=False)
    assert [epoch for epoch, _ in again.history] == [2, 3, 4]
    again.load_state_dict({"history": [[0, {}]], "last": {}})  # of earlier versions, which say no unit
    again.add(SimpleNamespace(report=report()), 5, keep=False)
    assert len(again.history) == 2
