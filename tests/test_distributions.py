"""The archives that are published: what they hold, file by file, and whether the index would take them."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.splitlines()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive of a fresh checkout, and the wheel that is built from it."""
    if not TRACKED:
        pytest.skip("not a checkout")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in TRACKED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    (wheel,) = built.glob("*.whl")
    (archive,) = built.glob("*.tar.gz")
    return archive, wheel


def in_package(names):
    return {name for name in names if name.startswith("lightning_robust/")}


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {*wheel.namelist()}
    assert in_package(names) == in_package(TRACKED)
    assert {
        "lightning_robust/py.typed",
        "lightning_robust/pages/base.html.j2",
        "lightning_robust/gate/README.md",
    } <= names
    (about,) = {name.split("/")[0] for name in names} - {"lightning_robust"}
    parts = {name.removeprefix(f"{about}/") for name in names if name.startswith(about)}
    assert parts == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def test_the_source_archive_holds_the_repository(archives):
    with tarfile.open(archives[0]) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    assert {(member.uname, member.gname) for member in members} == {("root", "root")}
    names = {member.name.partition("/")[2] for member in members}
    written = {"PKG-INFO", *(name for name in names if name.startswith("lightning_robust.egg-info/"))}
    assert names - written == {*TRACKED}


def test_what_the_index_shows(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(wheel.read(name))
    version = about["Version"]
    assert [path.name for path in archives] == [
        f"lightning_robust-{version}.tar.gz",
        f"lightning_robust-{version}-py3-none-any.whl",
    ]
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload(decode=True).decode() == (ROOT / "README.md").read_text()
    checked = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
