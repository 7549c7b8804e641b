"""What the benchmarks state of real libraries' pixels, and how they count what paths cost."""

import io
import itertools
import platform
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_robust.statistics import Bootstrap


@pytest.fixture
def paths(benchmark):
    pytest.importorskip("cv2")
    pytest.importorskip("av")
    return benchmark("pixel_paths")


def picture(height=64, width=96):
    """Coloured edges and a ramp, as bytes."""
    colours = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3))
    flat = np.kron(colours, np.ones((8, 8, 1)))
    return (0.7 * flat + 0.3 * np.linspace(0, 255, width)[None, :, None]).round().astype(np.uint8)


def plane(luma, blue, red, size=16):
    """A video's frame of one colour, in limited range."""
    av = pytest.importorskip("av")
    planes = np.full((size * 3 // 2, size), luma, np.uint8)
    planes[size : size + size // 4], planes[size + size // 4 :] = blue, red
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    frame.color_range = 1
    return frame


@pytest.mark.parametrize(
    ("ycc", "matrix", "rgb"),
    [
        ((16, 128, 128), "BT601", (0, 0, 0)),
        ((235, 128, 128), "BT709", (255, 255, 255)),
        ((81, 90, 240), "BT601", (255, 0, 0)),
        ((145, 54, 34), "BT601", (0, 255, 0)),
        ((63, 102, 240), "BT709", (255, 0, 0)),
        ((32, 240, 118), "BT709", (0, 0, 255)),
    ],
)
def test_closed_form_of_colour_bars(paths, ycc, matrix, rgb):
    """The bars of ITU-R BT.601 and BT.709 in 8 bits, whose codes are rounded: a level or two off."""
    found = paths.by_formula(plane(*ycc), weights=getattr(paths, matrix))
    assert np.abs(found.astype(int) - rgb).max() <= 2
    assert found.shape == (16, 16, 3)


def test_ffmpegs_default_conversion_cuts_off_and_its_accurate_one_rounds(paths):
    greys = [plane(luma, 128, 128) for luma in range(16, 236)]
    exact = np.array([paths.by_formula(frame)[8, 8, 0] for frame in greys], int)
    default = np.array([paths.to_rgb(frame)[8, 8, 0] for frame in greys], int) - exact
    accurate = np.array([paths.to_rgb(frame, paths.ACCURATE)[8, 8, 0] for frame in greys], int) - exact
    assert set(default) == {-1, 0}
    assert default.mean() == pytest.approx(-0.5, abs=0.05), "half a level darker"
    assert not accurate.any()


def test_decoders_differ_by_chroma_and_rounding(paths):
    """Pillow's and OpenCV's libjpeg give the same bytes; FFmpeg repeats chroma unless it is told otherwise."""
    content = io.BytesIO()
    paths.library("PIL.Image").fromarray(picture()).save(content, "JPEG", quality=75)
    decoded = {name: decode(content.getvalue()).astype(float) for name, decode in paths.DECODERS.items()}
    apart = {name: np.abs(other - decoded["Pillow"]).mean() for name, other in decoded.items()}
    assert apart["OpenCV"] == 0
    assert apart["PyAV, chroma bilinear, formula"] < 0.4, "two inverse DCTs, and a level where Pillow rounds chroma"
    assert apart["PyAV"] > 10 * apart["PyAV, chroma bilinear, formula"]
    assert apart["PyAV, chroma repeated, formula"] > 10 * apart["PyAV, chroma bilinear, formula"]


@pytest.mark.parametrize(("codec", "least", "most"), [("Pillow", 0.5, 12), ("OpenCV", 0.5, 12), ("PyAV", 1.0, 14)])
def test_a_jpeg_file_costs_levels(paths, codec, least, most):
    before = picture()
    costs = [np.abs(paths.through_jpeg(before, codec, q).astype(float) - before).mean() for q in (95, 75)]
    assert least < costs[0] < costs[1] < most


def test_nv12_read_as_it_was_written_costs_least(paths):
    before = picture()
    right = np.abs(paths.through_nv12(before, full=(True, True)).astype(float) - before).mean()
    for wrong in ({"read": "itu709"}, {"written": "itu709"}, {"full": (True, False)}, {"full": (False, True)}):
        assert np.abs(paths.through_nv12(before, **wrong).astype(float) - before).mean() > 1.2 * right
    white = np.full((16, 16, 3), 255, np.uint8)
    assert paths.through_nv12(white, full=(False, True)).min() == 235


def test_resizers_keep_a_flat_picture_and_two_move_a_ramp(paths):
    """A ramp shows where a resizer takes its pixels from; ``FAST_BILINEAR`` loses flat pictures four levels too."""
    step = 96 / 36
    ramp = np.tile(np.linspace(0, 255, 96)[None, :, None], (64, 1, 3)).round().astype(np.uint8)
    centres = ((np.arange(36) + 0.5) * step - 0.5)[4:32]
    off = {}
    for name, resize in paths.RESIZERS.items():
        flat = resize(np.full((64, 96, 3), (200, 100, 50), np.uint8), (24, 36)).astype(float)
        assert np.abs(flat - (200, 100, 50)).max() <= (4 if "FAST" in name else 1e-3), name
        values = resize(ramp, (24, 36))[12, 4:32, 0].astype(float)
        off[name] = float((values * 95 / 255 - centres).mean())
    assert off.pop("OpenCV INTER_NEAREST") == pytest.approx(-(step - 1) / 2, abs=0.4), "the upper left pixel of each"
    assert off.pop("swscale FAST_BILINEAR") == pytest.approx(0.9, abs=0.2)
    assert all(abs(value) < 0.2 for value in off.values()), off


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="swscale has this step on x86 alone")
@pytest.mark.parametrize(("size", "network"), [((540, 960), (144, 256)), ((96, 160), (40, 64))])
def test_fast_bilinear_is_its_closed_form(paths, benchmark, size, network):
    """Waves in both directions: less than a level off, where bilinear at the right places is four times as much."""
    fast = benchmark("fast_bilinear")
    rows, columns = np.arange(size[0])[:, None] / 17, np.arange(size[1])[None, :] / 11
    waves = (128 + 60 * np.sin(rows) + 60 * np.cos(columns)).round().astype(np.uint8)
    before = np.repeat(waves[:, :, None], 3, 2)
    real = paths.RESIZERS["swscale FAST_BILINEAR"](before, network).astype(float)

    def off(made):
        apart = real - made
        return np.abs(apart - apart.mean()).mean()

    plain = paths.RESIZERS["torch bilinear"](before, network)
    assert off(fast.closed_form(before, network)) < 0.8
    assert off(plain) > 4 * off(fast.closed_form(before, network))


def test_motions_put_lines_where_the_resizers_put_them(paths, benchmark):
    """Seen from its resizer a slanted line lies elsewhere; with the motion taken back it is where it was."""
    libraries, size = benchmark("libraries"), (540, 960)
    truth = np.stack([300 - 0.5 * libraries.ROWS, 500 + 0.7 * libraries.ROWS])[None]
    lines = {" | ".join(path): truth for path in libraries.PATHS}
    for name, made in paths.MOTIONS.items():
        motion, rows = torch.from_numpy(made(size, (144, 256))), torch.from_numpy(libraries.ROWS)
        lines[f"OpenCV | {name}"] = libraries.move_columns(torch.from_numpy(truth), rows, motion).numpy()
    answers, nearest, fast = libraries.Answers(lines, truth), *(("OpenCV", name) for name in paths.MOTIONS)
    (down,), step = paths.MOTIONS[nearest[1]](size, (144, 256))[1:2, 2], 3.75
    assert down == pytest.approx((step - 1) / 2 + 0.375), "half a step, and what floor(x * 3.75) cuts off"
    assert answers.moved(libraries.TRAINED, nearest)[0] == pytest.approx(down * (1.5 + 0.3) / 2)
    shrunk = 1 - step / (958 / 254 - 20 / 65536)
    assert answers.moved(libraries.TRAINED, fast)[0] == pytest.approx((truth + 0.5).mean() * shrunk)
    still = answers.still(size)
    for path in (nearest, fast):
        assert still.moved(libraries.TRAINED, path)[1] < 1e-9
        assert still.error(path) < 1e-9
    assert still.found() == answers.found() == 100


def test_frames_that_are_left_out_are_not_converted(benchmark, paths):
    libraries, converted = benchmark("libraries"), []
    found = libraries._each(
        Path("video"), 3, lambda path: iter(range(8)), lambda frame: converted.append(frame) or frame
    )
    assert list(found) == converted == [0, 3, 6]


def test_a_missing_library_is_one_sentence(paths):
    paths._PACKAGES["no_such_package"] = "nothing"
    with pytest.raises(SystemExit, match=r"^This needs no_such_package: pip install nothing$"):
        paths.library("no_such_package")


def test_equal_paths_move_nothing_and_a_shift_by_two_moves_two(benchmark, paths):
    libraries = benchmark("libraries")
    lines = np.linspace(100, 800, 5 * 2 * 18).reshape(5, 2, 18)
    known = np.ones(lines.shape, bool)
    assert libraries.moved(lines, lines, known) == (0, 0)
    assert libraries.moved(lines, lines + 2, known) == (2, 2)
    other = lines + 2
    other[0, 0, 0] = np.nan
    other[4] += 1000
    known[4] = False
    assert libraries.moved(lines, other, known) == (2, 2), "neither absent nor unknown points count"
    assert libraries.TRAINED in libraries.PATHS
    assert len(set(libraries.PATHS)) == len(libraries.PATHS) == len(libraries.READERS) * len(paths.RESIZERS)


def test_pairs_of_a_network_that_does_not_look_move_nothing(benchmark, paths):
    libraries = benchmark("libraries")
    truth = np.full((3, 2, 18), 400.0)
    answers = libraries.Answers({" | ".join(path): truth + 3.0 for path in libraries.PATHS}, truth)
    assert answers.error(libraries.TRAINED) == 3
    assert answers.known.all()
    some = list(itertools.islice(itertools.combinations(libraries.PATHS, 2), 50))
    assert {answers.moved(*pair) for pair in some} == {(0.0, 0.0)}


def test_points_lost_are_paired(benchmark, paths):
    """Of 1,000 pictures 40 are lost before and 10 after; the interval is of the pairs, not of two accuracies."""
    sysnoise = benchmark("sysnoise")
    clean = np.arange(1000) < 800
    before, after = clean & (np.arange(1000) >= 40), clean & (np.arange(1000) >= 10)
    key, row = " | ".join(sysnoise.CLEAN), "decode | PyAV"
    first, second = (sysnoise.Lost([{key: clean, row: hits}]) for hits in (before, after))
    assert (first.seeds([row]), second.seeds([row])) == ([4.0], [1.0])
    gained, (low, high) = sysnoise.removed(first, second, row, Bootstrap(1000))
    assert gained == 3.0
    half = 1.96 * 100 * np.sqrt(0.03 * 0.97 / 1000)  # of a share of 3 % of independent pictures
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=0.25)


def test_the_share_that_is_removed(benchmark, paths, tmp_path):
    """One of eight resizers costs 10 points before and 2 after, so that four fifths are gone, for either seed."""
    sysnoise, rows = benchmark("sysnoise"), benchmark("rows")
    (tmp_path / "sets").mkdir()
    for name in ("clean", *(name for _, name in sysnoise.SETS)):
        levels = np.full((100, 1, 1, 3), 7 if name == "OpenCV INTER_NEAREST" else 4, np.uint8)
        np.save(tmp_path / "sets" / f"test_{rows.slug(name)}.npy", levels)
    np.save(tmp_path / "sets" / "test_labels.npy", np.zeros(100, int))
    results, clean = rows.Results(tmp_path), np.arange(100) < 80
    for (name, lost), seed in itertools.product({"plain": 10, "PreprocessingMixin": 2}.items(), (0, 1)):
        right = {" | ".join(row): clean for row in [sysnoise.CLEAN, *sysnoise.SETS, *sysnoise.GRAPHS]}
        right["resize | OpenCV INTER_NEAREST"] = clean & (np.arange(100) >= lost)
        (tmp_path / name / str(seed)).mkdir(parents=True)
        np.savez(tmp_path / name / str(seed) / "right.npz", **right)
        results.put(name, seed, {" | ".join(sysnoise.CLEAN): 0.8, "cpu_seconds": 1.0})
    told = sysnoise.tables(results, Path("not read"), ["plain", "PreprocessingMixin"], [0, 1, 2]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told if line.startswith("|")]
    (nearest,) = [line for line in cells if line[1:2] == ["OpenCV INTER_NEAREST"]]
    assert nearest[2] == "3.00"
    assert nearest[3:5] == ["10.00 (10.00 to 10.00)", "2.00 (2.00 to 2.00)"]
    assert nearest[5].startswith("8.00 (")
    (after,) = [line for line in cells if line[0] == "PreprocessingMixin"]
    assert after[1:3] == ["2", "80.00 (80.00 to 80.00)"]
    assert after[5] == "0.25 (0.25 to 0.25)"
    assert after[-2:] == ["80.00 (80.00 to 80.00)"] * 2


def test_ceil_mode_pools_to_thirteen_places(benchmark, paths):
    cifar, sysnoise = benchmark("cifar"), benchmark("sysnoise")
    torch.manual_seed(0)
    module = cifar.SmallResNet(widths=(32, 48, 96, 192)).eval()
    images = torch.rand(2, 3, cifar.SIZE, cifar.SIZE)
    with torch.no_grad():
        other = sysnoise.ceiled(module)
        sizes = [net.trunk[:4](images).shape[-2:] for net in (module, other)]
        assert [tuple(size) for size in sizes] == [(12, 12), (13, 13)]
        torch.testing.assert_close(other.trunk[:4](images)[..., :12, :12], module.trunk[:4](images))


def test_an_archive_is_read_in_order_and_a_wrong_one_refused(benchmark, tmp_path):
    cifar = benchmark("cifar")
    archive = tmp_path / "some.tar"
    with tarfile.open(archive, "w") as files:
        for number, name in itertools.product((1, 0), cifar.CLASSES):
            info = tarfile.TarInfo(f"test/{name}/{number}.jpg")
            info.size = 1
            files.addfile(info, io.BytesIO(bytes([10 * cifar.CLASSES.index(name) + number])))
    contents, labels = cifar.read_files(archive, "test")
    assert [content[0] for content in contents] == [10 * c + n for c in range(10) for n in (0, 1)]
    assert labels.tolist() == [c for c in range(10) for _ in range(2)]
    with pytest.raises(SystemExit, match=r"Expected train/<class>/<number>\.jpg"):
        cifar.read_files(archive, "train")
    with pytest.raises(SystemExit, match="but there is none"):
        cifar.read_files(tmp_path / "none.tar", "test")


def test_jitter_moves_by_up_to_two_pixels_and_flips(benchmark):
    """Each picture is a window of itself with its border repeated, or of its mirror image."""
    cifar = benchmark("cifar")
    torch.manual_seed(0)
    images = torch.randint(256, (64, 3, 6, 6), dtype=torch.uint8)
    wide = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate").byte()
    found = set()
    for number, moved in enumerate(cifar.jittered(images)):
        windows = {
            (top, left, flipped): wide[number][:, top : top + 6, left : left + 6].flip(2 if flipped else ())
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
        }
        (place,) = [where for where, window in windows.items() if torch.equal(window, moved)]
        found.add(place)
    assert {flipped for *_, flipped in found} == {False, True}
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(5))


def test_a_kept_array_is_made_once(benchmark, tmp_path):
    cifar, made = benchmark("cifar"), []

    def make():
        made.append(1)
        return np.arange(3)

    for _ in range(2):
        assert cifar.kept_array(tmp_path / "sets" / "a.npy", make).tolist() == [0, 1, 2]
    assert made == [1]
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["a.npy"]
