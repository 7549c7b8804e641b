"""The engine cache: entries, keys, pruning, and folders that cannot be written."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from lightning_robust.deployment.engines import (
    abilities,
)
from lightning_robust.deployment.engines import cache as cache_module
from lightning_robust.deployment.engines.cache import EngineCache, default_directory, engine_key

from .builds import FP32, GOOD, build, make_model, refusal, script


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"enginE"), Path.unlink])
@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_corrupt_cache_entry_is_rebuilt(tmp_path, monkeypatch, damage, suffix):
    script(tmp_path, monkeypatch, GOOD)
    first = build(directory=tmp_path / "cache")
    assert build(directory=tmp_path / "cache").cached
    damage(first.path.with_suffix(suffix))
    again = build(directory=tmp_path / "cache")
    assert (again.cached, again.path.read_bytes()) == (False, b"engine")
    assert build(directory=tmp_path / "cache").cached


def test_cache_keeps_the_engines_used_last(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.setattr(cache_module, "MAX_ENGINES", 2)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "notes.engine").touch()

    def take(largest):
        return build(directory=cache, profile={"image": ((1, 64, 8, 8), (1, 64, 8, 8), (largest, 64, 8, 8))})

    first, second, again, third = take(1), take(2), take(1), take(3)
    assert [first.cached, second.cached, again.cached, third.cached] == [False, False, True, False]
    left = {first.path, third.path} | {e.path.with_suffix(".json") for e in (first, third)}
    assert set(cache.iterdir()) == left | {cache / "notes.engine"}


def test_key_is_everything_the_engine_depends_on(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    wide = {"image": ((1, 64, 8, 8), (2, 64, 8, 8), (8, 64, 8, 8))}
    other = make_model()
    other.graph.node[0].name = "renamed"
    variants = [{}, {"tf32": True}, {"profile": wide}, {"model": other.SerializeToString()}]
    full = {"backend": "tensorrt", "stand_in": True}
    variants += [full, full | {"weakly_typed": "fp16"}]
    paths = [build(**{"model": FP32} | variant, directory=tmp_path / "cache").path for variant in variants]
    monkeypatch.setattr(abilities, "library_version", lambda *_: "99")
    paths.append(build(directory=tmp_path / "cache").path)
    monkeypatch.setattr(abilities, "device_name", lambda *_: "NVIDIA Something")
    paths += [build(directory=tmp_path / "cache").path, build(directory=tmp_path / "cache", backend="tensorrt").path]
    assert len(set(paths)) == len(paths) == 9


def test_directory_that_cannot_be_written(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    (tmp_path / "file").touch()
    error = refusal(directory=tmp_path / "file" / "cache")
    assert error.kind == "disk"
    assert "file/cache cannot be written: [Errno 20] Not a directory" in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only directories")
def test_read_only_directory(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    (tmp_path / "cache").mkdir(mode=0o500)
    assert refusal(directory=tmp_path / "cache").kind == "disk"


def test_full_disk(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    error = refusal(directory=tmp_path / "cache")
    assert (error.kind, "No space left on device" in str(error)) == ("disk", True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_default_directory(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build().path.parent == tmp_path / "xdg" / "lightning_robust" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build().path.parent == tmp_path / "home" / ".cache" / "lightning_robust" / "engines"


def test_relative_directory(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.chdir(tmp_path)
    assert build(directory=Path("cache")).path.parent == tmp_path / "cache"


def test_default_directory_is_the_platforms(monkeypatch):
    from platformdirs.macos import MacOS
    from platformdirs.unix import Unix

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for system, place in ((MacOS, "Library/Caches"), (Unix, ".cache")):
        folder = system("lightning_robust", False).user_cache_path
        monkeypatch.setattr(cache_module.platformdirs, "user_cache_path", lambda *_, folder=folder: folder)
        assert default_directory() == Path.home() / place / "lightning_robust" / "engines"


def test_entries_are_what_was_reported(tmp_path):
    """Stored and read again with a checksum; another length, or another byte, and there is no entry."""
    cache = EngineCache(tmp_path / "cache")
    key = engine_key(b"model", {"tf32": False}, "")
    assert key == engine_key(b"model", {"tf32": False}, "") != engine_key(b"model", {"tf32": True}, "")
    assert cache.read(key) is None
    report = {"size": 6, "seconds": 0.5, "layers": {"wide": "HALF"}, "flags": "", "log": "built"}
    with cache.workspace() as folder:
        (folder / "engine").write_bytes(b"engine")
        stored = cache.store(key, folder / "engine", report)
    assert stored == report | {"sha256": hashlib.sha256(b"engine").hexdigest()}
    assert cache.read(key) == stored
    assert sorted(path.name for path in cache.folder.iterdir()) == [f"{key}.engine", f"{key}.json"]
    cache.path(key).write_bytes(b"enginE")
    assert cache.read(key) is None
