"""Engines behind a command that starts nothing or breaks off: a status, a sentence, and no training is lost."""

import pytest

from lightning_robust import DeploymentParityCallback
from tests.boring import Boring, make_trainer
from tests.deployment.engines.elsewhere import leftovers, make_ssh, make_target


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    return folder, make_target(folder)


LATER = {  # what the command does once it has said what the machine has
    "offline": ("echo no route >&2; exit 255", 3, "ended with status 255 before Python answered: no route"),
    "hangs": ("sleep 100", 4, "was killed after its time limit of 6 s"),
    "garbage": ("echo Welcome", 4, "ended well and did not run the program"),
    "dies half-way": ('sh -c "$*" | head -c 24', 4, "died half-way"),
    "a broken library": ('sh -c "$*"', 4, "has no attribute '__version__'"),
}


@pytest.mark.parametrize("case", LATER)
def test_a_machine_that_stops_answering(tmp_path, elsewhere, case):
    folder, (*_, python) = elsewhere
    body, status, words = LATER[case]
    once = (
        f'cd "{tmp_path}"; if mkdir asked 2>/dev/null; then exec sh -c "$*"; fi; export TMPDIR="{folder}/tmp"; {body}'
    )
    command = [*make_ssh(tmp_path / "ssh", once), python]
    settings = {"command": command, "cache": str(tmp_path / "cache"), "perturbations": "none", "localise": False}
    callback = DeploymentParityCallback(["tensorrt_rtx-fp16"], num_samples=4, time_limit=6.0, **settings)
    with pytest.warns(UserWarning, match=f"tensorrt_rtx-fp16 has no numbers.*({words})"):
        trainer = train(tmp_path, callback)
    assert trainer.callback_metrics["parity/tensorrt_rtx-fp16/status"] == status
    assert list((tmp_path / "cache").iterdir()) == leftovers(folder) == []


def test_a_machine_that_is_not_there(tmp_path):
    """Said before the training, once."""
    settings = {"command": ["no-such-command", "orin"], "perturbations": "none", "localise": False}
    callback = DeploymentParityCallback(["tensorrt-fp16"], num_samples=4, **settings)
    with pytest.warns(UserWarning, match="will have no numbers.*cannot be started: .*No such file") as caught:
        trainer = train(tmp_path, callback)
    assert trainer.callback_metrics["parity/tensorrt-fp16/status"] == 3
    assert sum("no numbers" in str(warning.message) for warning in caught) == 1


def train(folder, callback):
    """A fit that ends as it would without the callback."""
    trainer = make_trainer(folder, [callback], max_epochs=1)
    trainer.fit(Boring())
    assert (trainer.current_epoch, trainer.global_step) == (1, 4)
    return trainer
