"""Case files: what they say, and every way in which one can be wrong."""

from pathlib import Path

import pytest
import yaml

from lightning_robust.deployment.replay.cases import Window, check_windows, read_cases

from ..recordings import save_pictures, save_video, stripes

FRAMES = stripes(range(6, 28, 2), [40] * 11)
GOOD = {"why": "It swung.", "recording": "drive", "bounds": {"swing": 2}}


@pytest.fixture
def folder(tmp_path):
    save_pictures(tmp_path / "drive", FRAMES)
    return tmp_path


def write(folder, content, name="bridge.yaml"):
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / name).write_text(text)


def test_what_a_file_says(folder):
    write(
        folder,
        """
        why: >
          In the shadow of the bridge
          the left line swung.
        recording: drive
        class: shade
        window: {first: 2, last: 8, stride: 2}
        bounds:
          swing_px: 2
          emulated-fp16: {p99: 5e-1, lost: 0.01}
        before: {swing_px: 3.1}
        """,
    )
    write(folder, GOOD, "again.yml")
    (folder / "notes.txt").write_text("no case")
    again, bridge = read_cases(folder)
    assert (again.name, bridge.name, bridge.kind) == ("again", "bridge", "shade")
    assert bridge.why == "In the shadow of the bridge the left line swung."
    assert bridge.bounds == {"swing_px": 2.0, "emulated-fp16/p99_px": 0.5, "emulated-fp16/lost": 0.01}
    assert (bridge.before, bridge.before_checkpoint) == ({"swing_px": 3.1}, None)
    assert [frame for chunk in bridge.open() for frame in chunk.frames] == [2, 4, 6, 8]
    assert [frame for chunk in again.open() for frame in chunk.frames] == list(range(11))


def test_a_recording_may_stand_anywhere(folder, tmp_path_factory):
    elsewhere = save_pictures(tmp_path_factory.mktemp("elsewhere"), FRAMES[:1])
    (folder / "book").mkdir()
    for name, path in (("a", "../drive"), ("b", str(elsewhere)), ("c", "../drive/frame_3.png")):
        write(folder / "book", GOOD | {"recording": path}, f"{name}.yaml")
    paths = [case.recording for case in read_cases(folder / "book")]
    assert paths == [folder / "drive", elsewhere, folder / "drive/frame_3.png"]


def test_seconds_of_a_video(folder):
    """At 25 frames a second, 0.12 to 0.3 s holds the frames that begin at 0.12, 0.16, 0.2, 0.24 and 0.28 s."""
    save_video(folder / "drive.mp4", FRAMES)
    write(folder, GOOD | {"recording": "drive.mp4", "window": {"first_s": 0.12, "last_s": 0.3}})
    (case,) = read_cases(folder)
    assert [frame for chunk in case.open() for frame in chunk.frames] == [3, 4, 5, 6, 7]


def test_a_recording_that_cannot_be_read_is_found_when_its_turn_comes(folder):
    (folder / "broken.mp4").write_bytes(b"broken" * 100)
    write(folder, GOOD | {"recording": "broken.mp4"})
    (case,) = read_cases(folder)
    check_windows([case])
    with pytest.raises(ValueError, match="cannot be opened"):
        case.open()


def test_an_earlier_checkpoint_stands_beside_the_file(folder):
    (folder / "old.ckpt").touch()
    write(folder, GOOD | {"before": "old.ckpt"})
    (case,) = read_cases(folder)
    assert (case.before, case.before_checkpoint) == ({}, folder / "old.ckpt")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"windw": {}}, "expected the keys why, recording, .*, but got 'windw'. Did you mean 'window'"),
        ({"recording": "drvie"}, "recording: expected a video or a folder of pictures at .*drvie"),
        ({"recording": 7}, "recording: expected a text, but got 7"),
        ({"why": ""}, "why: expected a text, but got ''"),
        ({"why": None}, "why: expected a text, but got None"),
        ({"class": ["night"]}, r"class: expected a text, but got \['night'\]"),
        ({"bounds": {"swnig": 2}}, "bounds: swnig: expected a metric .* Did you mean 'swing_px'"),
        ({"bounds": {"swing": "much"}}, "bounds: swing: expected a number of at least 0, but got 'much'"),
        ({"bounds": {}}, "bounds: expected names"),
        ({"before": {"swing": -2}}, "before: swing: expected a number"),
        ({"before": "old.ckpt"}, "before: expected numbers, or a checkpoint, but there is none at"),
        ({"window": 3}, "window: expected the keys first, last, .*, but got 3"),
        ({"window": {"frist": 3}}, "window: .* got 'frist'. Did you mean 'first'"),
        ({"window": {"first": 2.5}}, "window: first: expected a whole number of at least 0, but got 2.5"),
        ({"window": {"first": True}}, "window: first: expected a whole number of at least 0, but got True"),
        ({"window": {"first": -1}}, "window: first: expected a whole number of at least 0, but got -1"),
        ({"window": {"stride": 0}}, "window: stride: expected a whole number of at least 1, but got 0"),
        ({"window": {"last_s": float("nan")}}, "window: last_s: expected seconds of at least 0, but got nan"),
        ({"window": {"first": 5, "last": 4}}, "window: expected the last frame after the first, but got 5 to 4"),
        ({"window": {"first": 1, "first_s": 1}}, "window: expected `first` or `first_s`, but got both"),
        ({"window": {"first": 11}}, "window: expected frames out of 0 to 10, but got 11 to 10"),
        ({"window": {"last": 11}}, "window: expected frames out of 0 to 10, but got 0 to 11"),
        ({"window": {"last_s": 1}}, "window: expected `first` and `last`, for the recording has no rate"),
        ({"bounds": None}, "bounds: expected names of metrics with a number each, but got None"),
    ],
)
def test_rejects_what_is_wrong_by_file_and_key(folder, change, complaint):
    write(folder, GOOD | change)
    with pytest.raises(ValueError, match=rf"bridge\.yaml: {complaint}") as error:
        check_windows(read_cases(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", GOOD)
def test_rejects_a_missing_key(folder, missing):
    write(folder, {key: value for key, value in GOOD.items() if key != missing})
    with pytest.raises(ValueError, match=rf"bridge\.yaml: expected the key '{missing}', but it is not there"):
        read_cases(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "bridge.yaml: expected the keys .*, but got None"),
        ("- a\n- b", r"bridge.yaml: expected the keys .*, but got \['a', 'b'\]"),
        ("why: [", "Expected YAML in .*bridge.yaml"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "bridge.yaml: expected the keys .*, but got 'a'"),
        ("why: !!python/object:os.system x", "Expected YAML in .*bridge.yaml"),
        ("why: a\nwhy: b\n", "bridge.yaml: why: expected it once, but it stands there twice"),
        ("why: a\nrecording: drive\nbounds: {lost: 1, lost: 2}", "bridge.yaml: lost: expected it once"),
    ],
)
def test_rejects_other_files(folder, text, complaint):
    write(folder, text)
    with pytest.raises(ValueError, match=complaint) as error:
        read_cases(folder)
    assert "\n" not in str(error.value)


def test_rejects_folders_without_cases(folder):
    with pytest.raises(FileNotFoundError, match=r"Expected a folder of cases at .*nowhere, but there is none"):
        read_cases(folder / "nowhere")
    with pytest.raises(ValueError, match=r"Expected cases, a YAML file each, in .*, but found none"):
        read_cases(folder)
    write(folder, GOOD, "a.yaml")
    write(folder, GOOD, "a.yml")
    with pytest.raises(ValueError, match=r"one file for each name in .*, but got two for a"):
        read_cases(folder)


def test_seconds_between_frames_hold_none():
    with pytest.raises(ValueError, match="w: expected a frame in it, but none begins in these seconds"):
        Window(first_s=0.05, last_s=0.07).frames(100, 25.0, "w")


def test_the_example_of_the_module_is_one(folder):
    import lightning_robust.deployment.replay.cases as module

    save_video(folder / "drive_7.mp4", stripes(range(200), [50] * 200, width=256))
    (folder / "cases").mkdir()
    (folder / "recordings").mkdir()
    Path(folder / "drive_7.mp4").rename(folder / "recordings/drive_7.mp4")
    example = module.__doc__.split("\n\n")[1]
    write(folder / "cases", example)
    (case,) = read_cases(folder / "cases")
    assert (case.window.first, case.window.last) == (120, 180)
    assert case.bounds["emulated-fp16/lost"] == 0.01
