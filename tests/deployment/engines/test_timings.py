"""The file of a builder's timings: damaged, of another library or device, written by several builds at a time."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_robust.deployment.engines.timings import TimingFile


def keep(file, folder, content, name="copy"):
    (folder / name).write_bytes(content)
    file.keep(folder / name)


def take(file, folder):
    copy = folder / "taken"
    copy.unlink(missing_ok=True)
    file.take(copy)
    return copy.read_bytes() if copy.exists() else None


def test_one_file_for_each_library_and_device(tmp_path):
    files = [TimingFile(tmp_path, *key) for key in (("10", "Orin"), ("11", "Orin"), ("11", "Thor"), ("1", "1 Thor"))]
    assert [take(file, tmp_path) for file in files] == [None] * 4
    for number, file in enumerate(files):
        keep(file, tmp_path, bytes([number]))
    assert [take(file, tmp_path) for file in files] == [b"\0", b"\1", b"\2", b"\3"]


def test_closed_form(tmp_path):
    file = TimingFile(tmp_path, "11", "Orin")
    keep(file, tmp_path, b"timings")
    assert file.path.read_bytes() == hashlib.sha256(b"timings").digest() + b"timings"
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-1], lambda b: b + b"x", lambda b: None]
)
def test_damage_is_no_timings(tmp_path, damage):
    file = TimingFile(tmp_path, "11", "Orin")
    keep(file, tmp_path, b"timings")
    content = damage(file.path.read_bytes())
    file.path.unlink()
    if content is not None:
        file.path.write_bytes(content)
    assert take(file, tmp_path) is None
    keep(file, tmp_path, b"anew")
    assert take(file, tmp_path) == b"anew"


def test_a_build_that_wrote_none_leaves_those_there_are(tmp_path):
    file = TimingFile(tmp_path, "11", "Orin")
    keep(file, tmp_path, b"timings")
    file.keep(tmp_path / "none")
    assert take(file, tmp_path) == b"timings"


def test_builds_at_a_time_leave_the_whole_of_one(tmp_path):
    """1000 files of 8 KiB from four threads; whoever reads meanwhile has one of them, and never a part."""
    file = TimingFile(tmp_path, "11", "Orin")
    contents = [bytes([number]) * 8192 for number in range(4)]

    def write(number):
        for _ in range(250):
            keep(file, tmp_path, contents[number], f"copy{number}")

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, number) for number in range(4)]
        while not all(job.done() for job in running):
            assert take(file, tmp_path) in (None, *contents)
        for job in running:
            job.result()
    assert take(file, tmp_path) in contents
