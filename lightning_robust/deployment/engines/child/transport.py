"""A job on its way to another machine and back: one Python program for its standard input, one archive in its output.

The program holds the supervisor, the child's script, the spec and the files, and nothing that a shell could misread,
since it is no argument of a command.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_robust.deployment.engines.child import supervisor
from lightning_robust.deployment.engines.child.errors import EngineError

_PIECE = 3 << 16  # bytes in a line of the program; a multiple of three
# The supervisor is packed too, so that a command that echoes the program writes nothing that looks like an answer.
# The first lines are for a Python of any age.
_PROGRAM = """\
import sys
sys.path[:] = [path for path in sys.path if path]
if sys.version_info < (3, 8):
    sys.exit("Python 3.8 or newer is needed there, but it is %s" % sys.version.split()[0])
import base64
payload = []
{payload}
scope = {{"__name__": "supervisor", "__file__": "supervisor.py"}}
exec(compile(base64.b64decode("{supervisor}"), "supervisor.py", "exec"), scope)
scope["serve"](payload)
"""
_HEADER = re.compile(re.escape(supervisor.ANSWER) + rb"(\d+) ([0-9a-f]{64})\n")


def write_program(
    program: Path, script: Path, verb: str, spec: Mapping[str, Any], reads: Mapping[str, Path], writes: Iterable[str]
) -> None:
    """Write the program that does a job on another machine.

    Args:
        program: The file to write.
        script: The child's script.
        verb: What it is to do.
        spec: What it is told, with its time limit.
        reads: Key of the spec -> file that travels there, if it exists.
        writes: Keys of the spec whose files travel back.
    """
    written = list(writes)
    job = {"script": script.name, "verb": verb, "spec": dict(spec), "writes": written}
    job["files"] = sorted({*reads, *written})
    archive = program.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("job.json", json.dumps(job))
        packed.write(supervisor.__file__, "script/supervisor.py")
        for part in {script, *script.parent.glob("*.py")} - {
            Path(supervisor.__file__)
        }:  # a script may use those beside it
            packed.write(part, f"script/{part.name}")
        packed.writestr("files/", "")
        for key, path in reads.items():
            if path.is_file():
                packed.write(path, f"files/{key}")
    source = base64.b64encode(Path(supervisor.__file__).read_bytes()).decode()
    before, after = _PROGRAM.format(payload="{payload}", supervisor=source).split("{payload}")
    with archive.open("rb") as file, program.open("wb") as stream:
        stream.write(before.encode())
        for piece in iter(lambda: file.read(_PIECE), b""):
            stream.write(b'payload.append(b"%s")\n' % base64.b64encode(piece))
        stream.write(after.encode())
    archive.unlink()


def read_answer(command: Sequence[str], code: int, answer: Path, writes: Mapping[str, Path], log: str) -> int:
    """Put the files of an answer in their places; returns the exit status of the child over there.

    Args:
        command: How the target was started, for the messages.
        code: The exit status of that command.
        answer: The file of what it wrote to its standard output.
        writes: Key of the spec -> where its file belongs.
        log: What it wrote to its standard error stream.

    Raises:
        EngineError: "unavailable" where no Python answered, "crashed" where it died half-way, "garbage" otherwise.
    """
    text = answer.read_bytes()
    where = f"`{' '.join(command)} -`"
    begins = text.find(supervisor.BEGINS)
    if begins < 0:
        raise _no_python(where, code, log)
    header = _HEADER.search(text, begins)
    archive = text[header.end() :][: int(header[1])] if header else b""
    if header is None or len(archive) < int(header[1]):
        raise EngineError("crashed", f"{where} died half-way with status {code}, after it had begun.", log)
    if hashlib.sha256(archive).hexdigest() != header[2].decode():
        raise EngineError("garbage", f"What came from {where} is not what was sent: its checksum differs.", log)
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        for key in writes.keys() & set(packed.namelist()):
            with packed.open(key) as source, writes[key].open("wb") as target:
                shutil.copyfileobj(source, target)
        return int(packed.read("exit"))


def _no_python(where: str, code: int, log: str) -> EngineError:
    """The error where the command ended and no supervisor had begun."""
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it printed no reason")
    advice = f"Try {where} in a shell: it must start Python 3.8 or newer, without a password."
    if code == 0:
        return EngineError("garbage", f"{where} ended well and did not run the program that it was given.", log, advice)
    return EngineError("unavailable", f"{where} ended with status {code} before Python answered: {last}", log, advice)
