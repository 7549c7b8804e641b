"""What a run has measured so far; what becomes of it is tested with the callback."""

from types import SimpleNamespace

from lightning_robust.callbacks.deployment_parity.record import ParityRecord
from lightning_robust.callbacks.deployment_parity.tags import STATUS


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
