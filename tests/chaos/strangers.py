"""Hostile bytes for every port: ZMTP (https://rfc.zeromq.org/spec/23) by hand, bombs, noise, and spoiled recordings."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

Address = tuple[str, int]

COMMAND, LONG = 0x04, 0x02  # flags of a ZMTP 3 frame
MORE = 0x01
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
MSGPACK_BOMBS = (
    b"\xdd\x0f\xff\xff\xff",  # an array of 268 million elements
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x0f\xff\xff\xff",  # a map
    b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes
    b"\xdd\x0f\xff\xff\xff" * 240,  # nested
    b"\x91" * 1200,
)


def greeting(mechanism: bytes, version: bytes = b"\x03\x00") -> bytes:
    """How a ZMTP 3 connection begins: 64 bytes."""
    return SIGNATURE + version + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def ready() -> bytes:
    """The rest of a handshake without encryption: this is a DEALER."""
    kind = b"Socket-Type"
    metadata = bytes([len(kind)]) + kind + (6).to_bytes(4, "big") + b"DEALER"
    return frame(b"\x05READY" + metadata, COMMAND)


def message(*parts: bytes) -> bytes:
    return b"".join(frame(part, MORE if i + 1 < len(parts) else 0) for i, part in enumerate(parts))


def memory_bombs(announced: int = 8 << 30) -> Iterator[bytes]:
    """Beginnings of connections that announce far more than they may, in every version of the protocol."""
    length = announced.to_bytes(8, "big")
    for mechanism in (b"CURVE", b"NULL"):
        for flags in (COMMAND | LONG, LONG, LONG | MORE):
            yield greeting(mechanism) + bytes([flags]) + length
    yield greeting(b"NULL") + ready() + bytes([LONG]) + length
    yield SIGNATURE + b"\x01" + b"\x05" + b"\x00\x00" + bytes([LONG]) + length  # ZMTP 2
    yield b"\xff" + length + b"\x00"  # ZMTP 1
    for bomb in MSGPACK_BOMBS:
        yield greeting(b"NULL") + ready() + message(bomb, b"") + message(bomb)


def pour(address: Address, beginning: bytes, most: int, seconds: float = 5.0) -> int:
    """Send `beginning` and then zeros, until `most` bytes, the end of the connection, or of the time."""
    sent, block, until = 0, bytes(256 << 10), time.monotonic() + seconds
    with suppress(OSError), socket.create_connection(address, timeout=1.0) as stranger:
        stranger.sendall(beginning)
        while sent < most and time.monotonic() < until:
            sent += stranger.send(block)
    return sent


def spoiled(recording: bytes, chance: random.Random) -> bytes:
    """A recording cut short, with bytes changed, repeated, or with something in between."""
    data = bytearray(recording[: chance.randrange(1, len(recording) + 1)])
    for _ in range(chance.choice((0, 0, 1, 3, 20))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        data[end:end] = data[start:end]
    if chance.random() < 0.3:
        at = chance.randrange(len(data) + 1)
        data[at:at] = chance.randbytes(chance.randrange(1, 2000))
    return bytes(data)


def noise(chance: random.Random) -> bytes:
    """Random bytes, mostly behind a beginning that is taken seriously."""
    beginning = chance.choice((b"", SIGNATURE, greeting(b"NULL"), greeting(b"CURVE"), greeting(b"NULL") + ready()))
    if chance.random() < 0.5:
        parts = [chance.randbytes(chance.randrange(300)) for _ in range(chance.randrange(1, 4))]
        return beginning + b"".join(message(*parts) for _ in range(chance.randrange(1, 8)))
    return beginning + chance.randbytes(chance.randrange(5000))


def annoy_tcp(address: Address, seconds: float, make: Callable[[], bytes]) -> int:
    """Connection after connection, each with bytes of its own; returns how many."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(address, timeout=1.0) as stranger:
            stranger.settimeout(0.02)  # some of it should be read before the end comes
            stranger.sendall(make())
            stranger.recv(4096)
        count += 1
    return count


def annoy_udp(address: Address, seconds: float, make: Callable[[], bytes]) -> int:
    until, count = time.monotonic() + seconds, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while time.monotonic() < until:
            for _ in range(50):
                sender.sendto(make()[:2000], address)
                count += 1
            time.sleep(0.005)
    return count
