"""Recordings: order, strides, what cannot be decoded, what cannot be read at all."""

import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_robust.deployment.replay.frames import Pictures, open_recording, read_picture
from lightning_robust.deployment.replay.video import Video

from ..recordings import save_pictures, save_video, stripes

LEFT = [4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26]
FRAMES = stripes(LEFT, [40] * 12)


def brightest(pictures):
    """The column of the left stripe of each frame."""
    return np.asarray(pictures)[:, 16, :32].astype(int).sum(-1).argmax(-1).tolist()


def everything(recording):
    numbers, columns = [], []
    for chunk in recording:
        assert chunk.pictures.dtype == torch.uint8
        numbers += chunk.frames
        columns += brightest(chunk.pictures)
    return numbers, columns


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "frames", FRAMES)


@pytest.fixture
def video(tmp_path):
    return save_video(tmp_path / "drive.mp4", FRAMES)


def test_pictures_come_as_they_are_and_in_natural_order(folder):
    recording = open_recording(folder, batch_size=5)
    assert isinstance(recording, Pictures)
    assert [len(chunk.frames) for chunk in recording] == [5, 5, 2]
    np.testing.assert_array_equal(torch.cat([chunk.pictures for chunk in recording]), FRAMES)


def test_video(video):
    recording = open_recording(video, batch_size=5)
    assert isinstance(recording, Video)
    assert everything(recording) == (list(range(12)), LEFT)
    assert recording.skipped == {}
    decoded = torch.cat([chunk.pictures for chunk in recording]).numpy().astype(int)
    assert np.abs(decoded - FRAMES).mean() < 3  # of 255: what the codec loses


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_stride_limit_and_pick(kind, request):
    path = request.getfixturevalue(kind)
    assert everything(open_recording(path, stride=4)) == ([0, 4, 8], [4, 12, 20])
    assert everything(open_recording(path, stride=2, limit=3)) == ([0, 2, 4], [4, 8, 12])
    found = open_recording(path).pick([9, 2])
    assert {number: brightest([frame])[0] for number, frame in found.items()} == {2: 8, 9: 22}


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_window_is_read_alone(kind, request):
    path = request.getfixturevalue(kind)
    window = open_recording(path, first=3, last=9, stride=3)
    assert window.total == 3
    assert everything(window) == ([3, 6, 9], [LEFT[3], LEFT[6], LEFT[9]])
    assert window.skipped == {}
    assert everything(open_recording(path, first=10)) == ([10, 11], LEFT[10:])
    assert everything(open_recording(path, first=11, last=11)) == ([11], LEFT[11:])
    assert [open_recording(path, **given).total for given in ({}, {"limit": 5}, {"first": 10}, {"last": 99})] == [
        *(12, 5, 2, 12)
    ]


def test_frames_and_rate_are_known_without_decoding(video, folder):
    assert (open_recording(video).length, open_recording(video).rate) == (12, 25.0)
    assert (open_recording(folder).length, open_recording(folder).rate) == (12, None)


def test_frames_outside_of_the_window_are_not_counted_as_broken(folder):
    (folder / "frame_3.png").write_bytes(b"no picture")
    recording = open_recording(folder, first=4)
    assert everything(recording)[0] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert recording.skipped == {}


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_grey_and_transparent_frames_are_rgb(tmp_path, mode):
    """A white stripe on black, in whatever way a picture stores it."""
    picture = Image.fromarray(np.where(np.arange(64) == 20, 255, 0).astype(np.uint8)[None].repeat(32, 0))
    suffix = "tif" if mode == "CMYK" else "png"
    picture.convert("RGB").convert(mode).save(tmp_path / f"frame.{suffix}")
    (chunk,) = open_recording(tmp_path)
    assert chunk.pictures.shape == (1, 32, 64, 3)
    assert brightest(chunk.pictures) == [20]


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (0, 1), (4, 2)])
def test_16_bits_a_channel_are_refused(tmp_path, kind, channels):
    """RGB, RGBA, grey, and grey with transparency: Pillow would cut three of them to 8 bits."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" + bytes(2 * channels)),
        b"IEND": b"",
    }
    chunks = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts.items()]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(ValueError, match=r"8 bits a channel, but got mode .*16"):
        read_picture(tmp_path / "a.png")


def test_one_picture(folder):
    assert everything(open_recording(folder / "frame_3.png")) == ([0], [10])


def test_broken_pictures_are_counted_and_leave_a_gap(folder):
    (folder / "frame_3.png").write_bytes(b"no picture")
    whole = (folder / "frame_5.png").read_bytes()
    (folder / "frame_5.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((32, 64), 40_000, np.uint16)).save(folder / "frame_7.png")
    (folder / "labels.txt").write_text("no frame")
    recording = open_recording(folder)
    assert everything(recording)[0] == [0, 1, 2, 4, 6, 8, 9, 10, 11]
    assert list(recording.skipped) == ["frame_3.png", "frame_5.png", "frame_7.png"]
    assert "8 bits" in recording.skipped["frame_7.png"]
    everything(recording)
    assert len(recording.skipped) == 3


@pytest.mark.parametrize("broken", [(4, 9), (4, 11)])
def test_broken_frames_of_a_video_are_counted_and_leave_a_gap(video, broken):
    av = pytest.importorskip("av")
    if 11 in broken and int(av.__version__.split(".")[0]) < 18:
        pytest.skip("PyAV before 18 loses the frames that it has when the last one cannot be decoded")
    with av.open(str(video)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(video.read_bytes())
    for number in broken:
        start, size = places[number]
        content[start : start + size] = bytes(size)
    video.write_bytes(content)
    recording = open_recording(video)
    numbers, columns = everything(recording)
    assert numbers == [number for number in range(12) if number not in broken]
    assert columns == [LEFT[number] for number in numbers]
    assert list(recording.skipped) == [f"frame {number}" for number in broken]
    strided = open_recording(video, stride=2)
    assert everything(strided)[0] == [0, 2, 6, 8, 10]
    assert list(strided.skipped) == ["frame 4"]


def test_a_new_size_begins_a_new_chunk(folder):
    Image.fromarray(FRAMES[0]).resize((32, 16)).save(folder / "frame_6.png")
    shapes = [tuple(chunk.pictures.shape[:3]) for chunk in open_recording(folder)]
    assert shapes == [(6, 32, 64), (1, 16, 32), (5, 32, 64)]


def test_rejects_what_holds_no_frames(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        open_recording(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match=r"Expected pictures .* found none"):
        open_recording(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"none of its 1 could be decoded. The first is a.png: UnidentifiedImageError"):
        list(open_recording(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"broken" * 100)
    with pytest.raises(ValueError, match=r"a\.mp4, but it cannot be opened: Invalid data"):
        list(open_recording(tmp_path / "a.mp4"))


@pytest.mark.parametrize("name", ["stride", "limit", "batch_size"])
def test_rejects_numbers_below_1(folder, name):
    with pytest.raises(ValueError, match=f"Expected `{name}` of at least 1, but got 0"):
        open_recording(folder, **{name: 0})


@pytest.mark.parametrize("given", [{"first": -1}, {"first": 3, "last": 2}])
def test_rejects_windows_without_frames(folder, given):
    with pytest.raises(ValueError, match="Expected `first` of at least 0 and `last` not before it, but got"):
        open_recording(folder, **given)


def test_without_pyav_the_command_is_named(video, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-robust\[video\]"'):
        open_recording(video)
    assert everything(open_recording(folder))[0] == list(range(12))
