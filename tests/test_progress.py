"""Every line against a clock that the test moves, on streams that are a terminal or a log."""

import contextlib
import io
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from lightning_robust import progress as module
from lightning_robust.progress import Progress, duration, hidden_progress, track


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def streams(monkeypatch, stderr):
    """The module's own view of `sys`, since pytest sets the real streams between fixtures and tests."""
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr, modules=sys.modules))
    return stderr


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "_now", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr(module, "_DELAY", 2.0)
    return clock


@pytest.fixture
def log(monkeypatch):
    return streams(monkeypatch, Stream(terminal=False))


@pytest.fixture
def terminal(monkeypatch):
    return streams(monkeypatch, Stream(terminal=True))


def work(clock, steps, seconds, what="Rendering pictures", **kwargs):
    for _ in track(range(steps), what, **kwargs):
        clock.now += seconds


def test_a_log_has_one_line_at_the_start_and_one_at_the_end(clock, log):
    work(clock, 8, 1.5)
    assert log.getvalue() == ("Rendering pictures: 2 of 8, about 9 s left\nRendering pictures: 8 of 8 done in 12 s\n")


def test_a_log_where_nobody_knows_how_many(clock, log):
    for _ in track((number for number in range(3)), "Reading runs"):
        clock.now += 100
    assert log.getvalue() == "Reading runs: 1\nReading runs: 3 done in 5 min 0 s\n"


def test_the_last_result_is_in_the_last_line(clock, log):
    with Progress("Soup", 3) as progress:
        for score in (0.7, 0.689):
            clock.now += 40
            progress.advance(note=f"val/acc {score}")
        progress.advance()
    assert log.getvalue() == "Soup: 1 of 3, about 1 min 20 s left\nSoup: 3 of 3 done in 1 min 20 s (val/acc 0.689)\n"


@pytest.mark.parametrize("stream", ["log", "terminal"])
def test_what_takes_less_than_two_seconds_shows_nothing(clock, stream, request):
    stream = request.getfixturevalue(stream)
    work(clock, 19, 0.1)
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_that_goes_away(clock, terminal):
    work(clock, 4, 1.5)
    frames = terminal.getvalue().split("\r")
    assert frames[1] == "Rendering pictures:  50%|#####     | 2/4 [00:03 left]"
    assert frames[2] == "Rendering pictures:  75%|#######5  | 3/4 [00:01 left]"
    assert set(frames[-2]) == {" "}
    assert frames[-1] == ""
    assert "\n" not in terminal.getvalue()


def test_a_terminal_shows_the_first_step_too(clock, terminal):
    with Progress("Building", 2) as progress:
        clock.now += 2
        progress.draw()  # as the thread does
        assert "Building:   0%|" in terminal.getvalue()


@pytest.mark.parametrize("stream", ["log", "terminal"])
def test_an_error_leaves_the_terminal_clean(clock, stream, request):
    stream = request.getfixturevalue(stream)

    def breaks():
        for number in track(range(4), "Rendering pictures"):
            clock.now += 3
            if number == 2:
                raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        breaks()
    if stream.terminal:
        assert set(stream.getvalue().split("\r")[-2]) == {" "}
    else:
        assert stream.getvalue().splitlines()[-1] == "Rendering pictures: 2 of 4 done when it stopped, after 9 s"
    work(clock, 2, 2, "Again")
    assert "Again" in stream.getvalue()


def test_what_lies_within_another_progress_is_silent(clock, log):
    for _ in track(range(2), "Outer"):
        work(clock, 2, 2, "Inner")
    assert log.getvalue() == "Outer: 1 of 2, about 4 s left\nOuter: 2 of 2 done in 8 s\n"


def test_hidden_in_a_block_and_after_an_error_no_more(clock, log):
    with hidden_progress(hide=False):
        work(clock, 1, 3, "Shown")
    with contextlib.suppress(KeyError), hidden_progress():
        work(clock, 1, 3, "Hidden")
        raise KeyError
    work(clock, 1, 3, "Later")
    assert re.findall(r"^\w+", log.getvalue(), re.M) == ["Shown", "Shown", "Later", "Later"]


def test_other_ranks_are_silent(clock, log, monkeypatch):
    from lightning_utilities.core.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    work(clock, 2, 3)
    assert log.getvalue() == ""


def test_background_threads_are_silent(clock, log):
    thread = threading.Thread(target=work, args=(clock, 2, 3))
    thread.start()
    thread.join()
    assert clock.now == 1006
    assert log.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_closed_stream_stops_no_work(clock, monkeypatch, terminal):
    stream = streams(monkeypatch, Stream(terminal))
    stream.isatty = lambda: terminal
    seen = []
    for number in track(range(3), "Rendering"):
        clock.now += 3
        seen.append(number)
        if number == 1:
            stream.close()
    assert seen == [0, 1, 2]


def test_no_stream_and_no_thread_stop_no_work(clock, log, monkeypatch):
    def full(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", full)
        work(clock, 2, 2, "Without")
    assert log.getvalue().count("Without") == 2
    streams(monkeypatch, None)
    work(clock, 2, 2)


def test_a_long_first_step_is_announced_while_it_lasts(monkeypatch, log):
    """By the thread, and the thread ends."""
    monkeypatch.setattr(module, "_DELAY", 0.02)
    threads = threading.active_count()
    with Progress("Building", 1):
        end = time.monotonic() + 10
        while not log.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        assert log.getvalue() == "Building: 0 of 1\n"
    end = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_rows_below_the_live_bars_of_rich(clock, monkeypatch):
    """Where the Trainer's bars are those of rich, ours is one of their rows while it lasts."""
    rich = pytest.importorskip("rich", minversion=None)
    from rich.console import Console
    from rich.file_proxy import FileProxy
    from rich.progress import Progress as Bars

    stream = Stream(terminal=True)
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    streams(monkeypatch, FileProxy(console, stream))
    with Bars(console=console, auto_refresh=False) as bars:
        bars.add_task("Epoch 0", total=4)
        bars.refresh()
        work(clock, 4, 1.5)
        during = stream.getvalue()
        bars.refresh()
        after = stream.getvalue()[len(during) :]
    assert re.search(r"Epoch 0 .*\nRendering pictures .*3 of 4, about 2 s left", during)
    assert "Rendering" not in after
    assert "Epoch 0" in after


def test_durations():
    assert [duration(s) for s in (0, 0.4, 59.6, 61, 3599.4, 3600)] == [
        "0 s",
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "59 min 59 s",
        "1 h 0 min",
    ]


def test_light_at_import():
    code = (
        f"import runpy, sys; runpy.run_path({module.__file__!r}); "
        "print(sorted({'torch', 'rich', 'tqdm', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_more_steps_than_were_announced(clock, log):
    with Progress("Soup", 2) as progress:
        for _ in range(3):
            clock.now += 2
            progress.advance()
    assert log.getvalue().splitlines()[-1] == "Soup: 3 of 3 done in 6 s"
