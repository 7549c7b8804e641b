"""Reads the scalars out of TensorBoard's event files, as far as a file is whole, and says where it is not.

TensorBoard's own reader ends at the first damaged record without a word.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_MOST_BYTES = 2**30
_CHECKED = 2**16  # scalars are of a hundred bytes; pictures, which are larger, are passed over
_POLYNOMIAL, _MASK = 0x82F63B78, 0xA282EAD8


class LoggedScalar(NamedTuple):
    """One value of one tag."""

    tag: str
    step: int
    time: float
    value: float


class EventFile(NamedTuple):
    """What one file holds.

    Args:
        scalars: In the order of the file.
        begun: Time of its first record.
        damage: What is wrong with it; empty if nothing is.
    """

    scalars: list[LoggedScalar]
    begun: float
    damage: str


def read_event_file(path: Path) -> EventFile:
    """The scalars of a file up to its end or to the first damaged record."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    scalars: list[LoggedScalar] = []
    begun = float("inf")
    try:
        for record in _records(path):
            event = Event.FromString(record)
            begun = min(begun, event.wall_time) if begun == float("inf") else begun
            if event.session_log.status == SessionLog.START:  # a restart: what it will log again does not count
                scalars = [scalar for scalar in scalars if scalar.step < event.step]
            scalars += [
                LoggedScalar(value.tag, event.step, event.wall_time, value.simple_value)
                for value in event.summary.value
                if value.HasField("simple_value")
            ]
    except Exception as error:  # whatever protobuf and the system say
        return EventFile(scalars, begun, f"{type(error).__name__}: {error}")
    return EventFile(scalars, begun, "")


def _records(path: Path) -> Iterator[bytes]:
    """The records of a file: length, its checksum, content, its checksum.

    Raises:
        ValueError: At the first one that is damaged.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"it has {status.st_size // 2**20} MiB, of at most {_MOST_BYTES // 2**20}")
    with path.open("rb") as stream:
        while header := stream.read(12):
            length = _record_length(header)
            if length > status.st_size - stream.tell() - 4:
                raise ValueError("it is cut off")
            if length > _CHECKED:
                stream.seek(length + 4, 1)
            else:
                yield _content(stream, length)


def _record_length(header: bytes) -> int:
    if len(header) < 12:
        raise ValueError("it is cut off")
    length, checksum = struct.unpack("<QI", header)
    if masked_crc32c(header[:8]) != checksum:
        raise ValueError("a record is damaged")
    return int(length)


def _content(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if masked_crc32c(content) != struct.unpack("<I", stream.read(4))[0]:
        raise ValueError("a record is damaged")
    return content


def masked_crc32c(content: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C (Castagnoli), rotated by 15 bits, plus a constant.

    Example:
        >>> unmasked = (masked_crc32c(b"123456789") - 0xA282EAD8) % 2**32
        >>> hex((unmasked << 15 | unmasked >> 17) % 2**32)  # the check value of the standard
        '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) % 2**32


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = [_table_entry(byte) for byte in range(256)]
