"""Arguments of `TesseractNetwork`, checked: every error names the argument, what was expected and what came."""

from __future__ import annotations

import ipaddress
import math
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


def grid_size_of(argument: str, grid: Sequence[int]) -> list[int]:
    """Sizes of a grid's axes, of a grid that may be too large for an alive map."""
    sizes = [int(size) for size in grid]
    if not 1 <= len(sizes) <= 8 or min(sizes) < 1 or max(sizes) > 65536 or math.prod(sizes) > 2**62:
        raise InvalidArgument(f"{argument}: expected 1 to 8 sizes of 1 to 65536, at most 2**62 cells, got {sizes}")
    return sizes


def record_name(name: str | bytes) -> bytes:
    encoded = name.encode() if isinstance(name, str) else name
    if not isinstance(encoded, bytes) or not encoded or len(encoded) > 1024:
        raise InvalidArgument(f"name: expected 1 to 1024 bytes or characters, got {name!r}")
    return encoded


def parse_announce(text: str) -> tuple[str, int | None]:
    """Host and port of an `announce` argument, as people write addresses; the port is None if it names none.

    "host", "host:port", "::1", "[::1]", "[::1]:port". Raises InvalidArgument on anything else.
    """
    problem = InvalidArgument(f"announce: expected 'host', 'host:port' or '[address]:port', got {text!r}")
    if not isinstance(text, str):
        raise problem
    if text.count(":") > 1 and not text.startswith("["):
        return text, None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise problem
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
    number = rest[1:]
    if not host or (rest and not (number.isascii() and number.isdigit() and 0 < int(number) < 65536)):
        raise problem
    return host, int(number) if rest else None


def join_address(host: str, port: int) -> str:
    """1.2.3.4:8081 or [::1]:8081."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_for_others(host: str, observed: str | None) -> str:
    """Where a node that listens on `host` can be reached, as far as it can know: what peers see, then what its own
    routes say, then loopback."""
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    if observed is not None and not ipaddress.ip_address(observed).is_loopback:
        return observed
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of RFC 5737, nobody's; connecting UDP sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
