"""What fails on one rank fails on all, before the next collective, and every rank says why."""

import json
import time
import warnings
from datetime import timedelta

import lightning.pytorch as pl
import pytest
from torch.distributed.distributed_c10d import _set_pg_timeout

from lightning_robust.harness.ranks import Guard, RankError, agreed, describe_error, on_rank_zero

from ..boring import Boring, TwoProcesses, make_trainer


def caught(work):
    """What a call returns, or the class and message of its error."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class Cases(pl.Callback):
    """Runs every case on both ranks; each writes what came of it. A collective that only one enters would hang."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        rank = trainer.global_rank

        def fails_on(*ranks):
            def work():
                if rank in ranks:
                    raise OSError(f"disk {rank}")
                return rank

            return work

        def nested():
            agreed(trainer, fails_on(1), "Reading")
            return "unreachable"

        def alike():
            raise ValueError("misspelt")

        def two_steps():
            value = agreed(trainer, fails_on(), "The first")
            return agreed(trainer, fails_on(0), "The second") + value

        guard = Guard("Probe")
        seen = []
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            seen.append(guard.attempt(trainer, fails_on(1), "nothing was measured", "default"))
            seen.append(guard.attempt(trainer, fails_on(), "nothing was measured", "default"))
            seen.append(guard.attempt(trainer, nested, "nothing was read"))
        results = {
            "all succeed": caught(lambda: agreed(trainer, fails_on(), "Reading")),
            "one fails": caught(lambda: agreed(trainer, fails_on(1), "Reading")),
            "both differ": caught(lambda: agreed(trainer, fails_on(0, 1), "Reading")),
            "both alike": caught(lambda: agreed(trainer, alike, "Reading")),
            "nested": caught(lambda: agreed(trainer, nested, "Cooking")),
            "two steps": caught(lambda: agreed(trainer, two_steps, "Cooking")),
            "rank zero": caught(lambda: on_rank_zero(trainer, lambda: f"from {rank}", "Writing")),
            "rank zero fails": caught(lambda: on_rank_zero(trainer, fails_on(0), "Writing")),
            "raise": caught(lambda: Guard("Probe", "raise").attempt(trainer, fails_on(0), "nothing was measured")),
            "guard": seen,
            "warnings": [str(w.message) for w in log if "Probe" in str(w.message)],
            "in step": float(trainer.strategy.reduce(pl_module.device and 0 * pl_module.net[0].weight.sum() + rank)),
        }
        (self.folder / f"rank{rank}.json").write_text(json.dumps(results))


LIMIT = 2.0  # seconds for a collective while ranks wait


class Waits(pl.Callback):
    """Rank 0 works longer than any collective may take; then a rank is interrupted in the middle of its work."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        def work():
            time.sleep(1.5 * LIMIT if trainer.is_global_zero else 0)
            return trainer.global_rank

        def interrupted():
            if trainer.is_global_zero:
                raise KeyboardInterrupt

        _set_pg_timeout(timedelta(seconds=LIMIT), None)
        start = time.monotonic()
        results = [on_rank_zero(trainer, work, "Building"), agreed(trainer, work, "Building")]
        seconds = time.monotonic() - start
        try:
            agreed(trainer, interrupted, "Building")
        except KeyboardInterrupt:
            results.append("interrupted")
        except RankError as error:
            results.append(str(error))
        _set_pg_timeout(timedelta(minutes=5), None)
        written = {"results": results, "seconds": seconds}
        (self.folder / f"waits{trainer.global_rank}.json").write_text(json.dumps(written))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What two ranks wrote, file -> contents."""
    folder = tmp_path_factory.mktemp("ranks")
    callbacks = [Cases(folder), Waits(folder)]
    make_trainer(folder, callbacks, strategy=TwoProcesses(), devices=2, fast_dev_run=True).fit(Boring())
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_no_collective_waits_for_long_work(written):
    """Twice 1.5 times as long as a collective may take; and no rank waits for one that was interrupted."""
    first, second = written["waits0"], written["waits1"]
    assert first["results"] == [0, 0, "interrupted"]
    assert second["results"] == [0, 1, "Rank 0 was interrupted (KeyboardInterrupt)."]
    assert all(3 * LIMIT < rank["seconds"] < 3 * LIMIT + 10 for rank in (first, second))


def test_one_failure_is_every_ranks_failure(written):
    first, second = written["rank0"], written["rank1"]
    assert (first.pop("all succeed"), second.pop("all succeed")) == (0, 1)
    assert first.pop("guard") == ["default", 0, None]
    assert second.pop("guard") == ["default", 1, None]
    assert first.pop("warnings") == [
        "Probe: nothing was measured. It failed on 1 of 2 ranks. rank 1: OSError: disk 1",
        "Probe: nothing was read. Reading failed on 1 of 2 ranks. rank 1: OSError: disk 1",
    ]
    assert second.pop("warnings") == []
    assert first == second
    assert first == {
        "one fails": "RankError: Reading failed on 1 of 2 ranks. rank 1: OSError: disk 1",
        "both differ": "RankError: Reading failed on 2 of 2 ranks. rank 0: OSError: disk 0; rank 1: OSError: disk 1",
        "both alike": "ValueError: misspelt",
        "nested": "RankError: Reading failed on 1 of 2 ranks. rank 1: OSError: disk 1",
        "two steps": "RankError: The second failed on 1 of 2 ranks. rank 0: OSError: disk 0",
        "rank zero": "from 0",
        "rank zero fails": "RankError: Writing failed. Rank 0: OSError: disk 0",
        "raise": "RankError: Probe: nothing was measured. It failed on 1 of 2 ranks. rank 0: OSError: disk 0",
        "in step": 0.5,
    }


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path)


def fail():
    raise KeyError("planted")


def test_a_single_process_keeps_the_error_itself(trainer):
    assert agreed(trainer, lambda: 3, "Counting") == on_rank_zero(trainer, lambda: 3, "Counting") == 3
    for guarded in (agreed, on_rank_zero):
        with pytest.raises(KeyError, match="planted"):
            guarded(trainer, fail, "Counting")
    with pytest.raises(KeyError, match="planted"):
        Guard("Probe", "raise").attempt(trainer, fail, "nothing was counted")


def test_interruptions_pass_through(trainer):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard("Probe").attempt(trainer, interrupt, "nothing was counted")


def test_warns_once_where_asked(trainer):
    guard = Guard("Probe")

    def warnings_of(**settings):
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            assert guard.attempt(trainer, fail, "nothing was counted", 7, **settings) == 7
        return [str(each.message) for each in log]

    message = "Probe: nothing was counted. KeyError: 'planted'"
    assert [warnings_of(once=True), warnings_of(once=True), warnings_of(), warnings_of()] == [
        [message],
        [],
        [message],
        [message],
    ]
    guard.reset()
    assert warnings_of(once=True) == [message]


def test_describes_errors():
    assert describe_error(None) == ""
    assert describe_error(ValueError("why")) == "ValueError: why"
    assert describe_error(RankError("Reading failed on 1 of 2 ranks.")) == "Reading failed on 1 of 2 ranks."
