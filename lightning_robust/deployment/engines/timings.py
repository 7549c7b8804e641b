"""What TensorRT's builder has timed so far: one file for each version of the library on each device.

The weights of a training differ at every validation, and so do its engines; what a convolution of some shape costs
does not. With the file a build times only what is new in it, and two builds choose the same kernels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


class TimingFile:
    """The file in the folder of engines: a SHA-256, and the bytes of the library's that it belongs to.

    A build works on a copy. Of two builds at a time the later one's timings stay, whole: files are replaced at once.

    Args:
        folder: The folder of engines.
        library: The library and its version.
        device: The name of the device that was timed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> file, copy = TimingFile(folder, "tensorrt 11.4", "Orin"), folder / "copy"
        >>> _ = copy.write_bytes(b"0.2 ms")
        >>> file.keep(copy)
        >>> file.take(copy)
        >>> copy.read_bytes(), TimingFile(folder, "tensorrt 11.4", "Thor").path.exists()
        (b'0.2 ms', False)
    """

    def __init__(self, folder: Path, library: str, device: str) -> None:
        name = hashlib.sha256(f"{library}\n{device}".encode()).hexdigest()[:32]
        self.path = folder / f"{name}.timings"

    def take(self, copy: Path) -> None:
        """Write the timings to a copy; none where there are none, or where the file is damaged."""
        try:
            stored = self.path.read_bytes()
        except OSError:
            return
        digest, timings = stored[:32], stored[32:]
        if hashlib.sha256(timings).digest() == digest:
            copy.write_bytes(timings)

    def keep(self, copy: Path) -> None:
        """Move a copy into place, if the build has written one; the copy must be on the same file system."""
        if copy.is_file():
            timings = copy.read_bytes()
            copy.write_bytes(hashlib.sha256(timings).digest() + timings)
            copy.replace(self.path)
