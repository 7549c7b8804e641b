import pytest
import torch

from lightning_robust.deployment.engines import Ability, Built, Runtime, Subject
from lightning_robust.deployment.engines.execution import execute, one_line, run_in_batches


class Stub(Runtime):
    def __init__(self, built=None, able=True):
        super().__init__("stub", "fp16")
        self.built, self.able = built, able

    def can_build(self):
        return Ability(self.able, "" if self.able else "not here")

    def build(self, subject):
        if self.built is None:
            raise ValueError("first line\nsecond")
        return self.built


SUBJECT = Subject(torch.nn.Identity(), (torch.arange(5.0)[:, None], torch.tensor(3.0)))


def test_samples_go_in_by_batches_and_come_back_in_order():
    seen = []

    def runner(args):
        seen.append((len(args[0]), float(args[1])))
        return [2 * args[0], args[1]]

    doubled, scalar = run_in_batches(runner, SUBJECT.example, 2)
    assert seen == [(2, 3.0), (2, 3.0), (1, 3.0)]
    assert doubled[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert scalar == 3


@pytest.mark.parametrize(
    ("made", "status", "note"),
    [
        (Stub(able=False), "unavailable", "not here"),
        (Stub(), "failed", "ValueError: first line"),
        (Stub(Built(None, 7, "no device")), "built", "no device"),
        (Stub(Built(lambda args: [args[0] + 1], 7)), "measured", ""),
        (Stub(Built(lambda args: 1 / 0, 7)), "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_becomes_of_a_runtime(made, status, note):
    execution = execute(made, SUBJECT)
    assert (execution.status, execution.note) == (status, note)
    assert (execution.run is not None) == (status == "measured")
    if status == "measured":
        assert execution.outputs[0][:, 0].tolist() == [1, 2, 3, 4, 5]
        assert execution.size == 7


def test_an_error_is_one_line():
    assert one_line(KeyError()) == "KeyError: no message"
    assert len(one_line(ValueError("x" * 1000))) == len("ValueError: ") + 400
