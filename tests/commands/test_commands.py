import jsonargparse
import pytest

from lightning_robust import DeploymentParityCallback, commands
from lightning_robust.cli import main
from lightning_robust.commands.golden import golden
from lightning_robust.commands.parity import parity
from lightning_robust.commands.replay import replay
from lightning_robust.deployment.engines import BuildSettings


@pytest.fixture
def greet_command(monkeypatch):
    """A command that is registered for one test."""
    import sys
    import types

    module = types.ModuleType("lightning_robust.commands.greet")

    def greet(path: str, *, times: int = 1) -> None:
        """Say hello.

        Args:
            path: Whom.
            times: How often.
        """
        if times < 1:
            raise ValueError(f"Expected `times` to be positive, but got {times}.")
        print(path * times)

    module.greet = greet
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(commands.COMMANDS, "greet", "say hello")


def test_options_reach_the_function(greet_command, capsys):
    main(["greet", "a", "--times=3"])
    assert capsys.readouterr().out == "aaa\n"


def test_what_a_user_can_mend_is_one_line(greet_command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["greet", "a", "--times=0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: Expected `times` to be positive, but got 0.\n"


def test_help_names_the_commands(greet_command, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "greet say hello" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("returned", "code"), [(None, None), (0, None), (1, 1)])
def test_what_a_command_returns_is_its_status(returned, code, greet_command, monkeypatch):
    module = __import__("sys").modules["lightning_robust.commands.greet"]

    def greet(path: str) -> int | None:
        return returned

    monkeypatch.setattr(module, "greet", greet)
    if code is None:
        main(["greet", "a"])
        return
    with pytest.raises(SystemExit) as stop:
        main(["greet", "a"])
    assert stop.value.code == code


def test_what_nobody_foresaw_is_no_status_of_a_measurement(greet_command, monkeypatch, capsys):
    module = __import__("sys").modules["lightning_robust.commands.greet"]

    def greet(path: str) -> None:
        raise KeyError("somewhere")

    monkeypatch.setattr(module, "greet", greet)
    with pytest.raises(SystemExit) as stop:
        main(["greet", "a"])
    assert stop.value.code == 2
    assert "KeyError: 'somewhere'" in capsys.readouterr().err


def options(of):
    """The options of a command, or the arguments of a class, with their defaults."""
    parser = jsonargparse.ArgumentParser()
    add = parser.add_class_arguments if isinstance(of, type) else parser.add_function_arguments
    add(of, sub_configs=True)
    return vars(parser.get_defaults())


@pytest.mark.parametrize("command", [parity, golden, replay], ids=lambda command: command.__name__)
def test_every_command_that_runs_engines_takes_the_settings_of_engines(command):
    settings = options(BuildSettings)
    assert len(settings) >= 15
    found = options(command)
    defaults = {name: value for name, value in settings.items() if name != "time_limit"}
    assert {name: found[name] for name in defaults} == defaults
    assert "time_limit" in found


def test_parity_takes_what_the_callback_takes():
    """All but what says when in a training to measure, and what to do to the training then."""
    of_trainings = {"every_n_epochs", "num_samples", "pass_samples", "on_violation", "on_failure", "localise", "log"}
    arguments = options(DeploymentParityCallback).keys() - of_trainings - {"background"}
    assert {"input_key", "decode", "weakly_typed", "refit", "perturb_targets", "deployed"} <= arguments
    assert arguments <= options(parity).keys()
