"""The folder of built engines: where it is, what an engine's key depends on, and which engines stay in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from lightning_robust.deployment.engines.child.process import EngineError
from lightning_robust.deployment.engines.child.supervisor import scratch

MAX_ENGINES = 32
"""How many engines a folder holds; training writes one at every validation, since the weights differ."""
_FORMAT = 1  # raise it when the meaning of an entry changes


def default_directory() -> Path:
    """The user's cache folder for engines; ``XDG_CACHE_HOME`` overrides the platform's own place."""
    override = os.environ.get("XDG_CACHE_HOME")
    root = Path(override, "lightning_robust") if override else platformdirs.user_cache_path("lightning_robust", False)
    return root / "engines"


def engine_key(model: bytes, settings: Mapping[str, Any], device: str) -> str:
    """A hash of all that an engine depends on: the model, the build's settings and the CUDA device ('' for none)."""
    everything = {**settings, "format": _FORMAT, "device": device or "no device"}
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode())
    digest.update(hashlib.sha256(model).digest())
    return digest.hexdigest()


def is_report(result: Mapping[str, Any]) -> bool:
    """Whether the child's report of a build has every field of an engine, with the right type."""
    types = {"size": int, "seconds": float, "layers": dict, "flags": str}
    return all(isinstance(result.get(name), kind) for name, kind in types.items()) and result["size"] > 0


class EngineCache:
    """A folder with two files for each engine: ``<key>.engine``, and ``<key>.json`` with its entry.

    Args:
        directory: The folder; the user's cache folder if None.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.folder = (directory or default_directory()).expanduser().absolute()

    def path(self, key: str) -> Path:
        """The engine's file."""
        return self.folder / f"{key}.engine"

    def read(self, key: str) -> dict[str, Any] | None:
        """The entry of an engine; None where there is none, or where the engine's bytes are not those it describes."""
        path = self.path(key)
        try:
            entry = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            intact = hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"] and is_report(entry)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not intact:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # in use: the last to be pruned
        return dict(entry)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder on the cache's own file system, so that :meth:`store` can move files into place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with scratch(self.folder, ".build-") as folder:
            yield folder

    def store(self, key: str, engine: Path, report: Mapping[str, Any]) -> dict[str, Any]:
        """Move an engine from the workspace into place; returns its entry, which is the report with a checksum."""
        entry = {**report, "sha256": hashlib.sha256(engine.read_bytes()).hexdigest()}
        sidecar = engine.with_suffix(".json")
        sidecar.write_text(json.dumps(entry), encoding="utf-8")
        engine.replace(self.path(key))
        sidecar.replace(self.path(key).with_suffix(".json"))
        return entry

    def prune(self) -> None:
        """Delete the engines that have not been used for longest, down to :data:`MAX_ENGINES`."""
        with contextlib.suppress(OSError):
            engines = self.folder.glob(f"{'[0-9a-f]' * 64}.engine")
            for path in sorted(engines, key=lambda path: path.stat().st_mtime_ns)[:-MAX_ENGINES]:
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of this process (full, read-only, not a directory) into an EngineError that names the folder."""
    try:
        yield
    except OSError as error:
        raise EngineError("disk", f"{folder} cannot be written: {error}") from error
