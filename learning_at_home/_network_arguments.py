"""Arguments of `TesseractNetwork`, checked: every error names the argument, what was expected and what came."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence

from learning_at_home.errors import InvalidArgument


def checked_port(argument: str, port: int, lowest: int = 1) -> int:
    if isinstance(port, bool) or not isinstance(port, int) or not lowest <= port <= 65535:
        raise InvalidArgument(f"{argument}: expected a port from {lowest} to 65535, got {port!r}")
    return port


def checked_peer(peer: tuple[str, int]) -> tuple[str, int]:
    if isinstance(peer, str) or not isinstance(peer, Sequence) or len(peer) != 2 or not isinstance(peer[0], str):
        raise InvalidArgument(f"initial_peers: expected (host, port) pairs, got {peer!r}")
    return peer[0], checked_port("initial_peers", peer[1])


def resolved(argument: str, host: str) -> str:
    """Address of a host, IPv4 if it has one. The network thread itself never resolves a name."""
    if not isinstance(host, str) or not host:
        raise InvalidArgument(f"{argument}: expected a host name or address, got {host!r}")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(f"{argument}: cannot resolve {host!r}: {error}") from None
    addresses = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(addresses[0][4][0]).partition("%")[0]


def uid_list(argument: str, uids: Iterable[str]) -> list[str]:
    if isinstance(uids, str):
        raise InvalidArgument(f"{argument}: expected several uids, got one string {uids!r}")
    listed = list(uids)
    for uid in listed:
        if not isinstance(uid, str):
            raise InvalidArgument(f"{argument}: expected strings, got {uid!r}")
    return listed


def schema_hash_of(schema_hashes: Mapping[str, int] | None, uid: str) -> int:
    if schema_hashes is None:
        return 0
    if uid not in schema_hashes:
        raise InvalidArgument(f"schema_hashes: no hash for uid {uid!r}")
    value = int(schema_hashes[uid])
    if not 0 <= value < 2**64:
        raise InvalidArgument(f"schema_hashes: expected 64 bits for uid {uid!r}, got {value}")
    return value


def record_name(name: str | bytes) -> bytes:
    encoded = name.encode() if isinstance(name, str) else name
    if not isinstance(encoded, bytes) or not encoded or len(encoded) > 1024:
        raise InvalidArgument(f"name: expected 1 to 1024 bytes or characters, got {name!r}")
    return encoded
