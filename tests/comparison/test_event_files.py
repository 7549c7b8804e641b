"""Event files are read as TensorBoard reads them, and a damaged one is named."""

import random
import zlib

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_robust.comparison.event_files import LoggedScalar, masked_crc32c, read_event_file


def write(folder, count=20):
    with SummaryWriter(str(folder)) as writer:
        for step in range(count):
            writer.add_scalar("val/acc", step / 8, step, walltime=1000.0 + step)
            writer.add_scalar("val/px", -step, step, walltime=1000.5 + step)
        writer.add_text("words", "text")
        writer.add_image("picture", torch.rand(3, 200, 200))  # larger than what is checked
        writer.add_scalar("late", 1.0, count, walltime=2000.0)
    (path,) = folder.glob("events*")
    return path


def test_matches_tensorboard(tmp_path):
    path = write(tmp_path)
    reference = EventAccumulator(str(path), size_guidance={"scalars": 0})
    reference.Reload()
    tags = reference.Tags()["scalars"]
    expected = {(tag, e.step, e.wall_time, e.value) for tag in tags for e in reference.Scalars(tag)}
    found = read_event_file(path)
    assert {tuple(scalar) for scalar in found.scalars} == expected
    assert len(found.scalars) == len(expected) == 41
    assert (found.begun, found.damage) == (reference.FirstEventTimestamp(), "")


def test_a_restart_drops_what_is_logged_again(tmp_path):
    """As TensorBoard does for a writer with purge_step."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(4):
            writer.add_scalar("a", step, step)
    with SummaryWriter(str(tmp_path), purge_step=2, filename_suffix=".again") as writer:
        writer.add_scalar("a", 9.0, 2)
    first, second = sorted(tmp_path.glob("events*"), key=lambda path: len(path.name))
    joined = tmp_path / "joined"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    assert [(scalar.step, scalar.value) for scalar in read_event_file(joined).scalars] == [(0, 0), (1, 1), (2, 9)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("whole"))
    return path.read_bytes(), read_event_file(path).scalars


@pytest.mark.parametrize("number", range(60))
def test_cut_or_flipped_anywhere(tmp_path, whole, number):
    """What stands before the damage is read, and the damage is named."""
    content, draw = bytearray(whole[0][:4000]), random.Random(number)
    place = draw.randrange(len(content))
    if number % 2:
        content[place] ^= 1 << draw.randrange(8)
    else:
        del content[place:]
    (tmp_path / "damaged").write_bytes(content)
    found = read_event_file(tmp_path / "damaged")
    assert found.scalars == whole[1][: len(found.scalars)]
    assert found.damage in ("ValueError: a record is damaged", "ValueError: it is cut off")


def test_a_length_that_was_made_up_reads_nothing(tmp_path):
    """Its checksum is right, so that a reader that trusts it would ask for 2**62 bytes."""
    header = (2**62).to_bytes(8, "little")
    path = tmp_path / "events"
    path.write_bytes(header + masked_crc32c(header).to_bytes(4, "little") + b"x" * 100)
    assert read_event_file(path) == ([], float("inf"), "ValueError: it is cut off")
    record = b"\xff" * 50
    header = len(record).to_bytes(8, "little")
    checks = [masked_crc32c(part).to_bytes(4, "little") for part in (header, record)]
    path.write_bytes(header + checks[0] + record + checks[1])
    assert read_event_file(path).damage.startswith("DecodeError")


def test_checksum_is_another_than_that_of_zip():
    assert masked_crc32c(b"") == 0xA282EAD8
    assert masked_crc32c(b"123456789") != zlib.crc32(b"123456789")
    assert LoggedScalar("a", 0, 0.0, 1.0)._fields == ("tag", "step", "time", "value")
