"""Whole networks of DHT nodes in virtual time: the nodes of `TesseractNetwork`, without sockets, threads or waiting.

Everything follows from a seed: the same calls on the same seed make the same network do the same, event for event
(`Swarm.log_hash`). Latencies are those of four regions of the world with a median round trip of 110 ms between two
nodes, or one constant. Times are virtual seconds everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learning_at_home import _core
from learning_at_home.errors import InvalidArgument

MOST_NODES = 2_000_000
LEAST_NODES = 20  # of a study or a check
LEAST_CHECK = 360.0

Progress = Callable[[str, int, int], None]
Rtt = float | tuple[float, float] | None


@dataclass(frozen=True)
class Timed:
    """What a store or a get came to. replicas: nodes that took the record; values: one per owner, empty if none."""

    seconds: float
    replicas: int = 0
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class SwarmStatus:
    """One node of a swarm. peers: in its routing table; records: held; bytes are UDP payload since its start."""

    peers: int
    ready: bool
    isolated: bool
    records: int
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class LookupTimes:
    """What `study_lookups` measured; lists are in seconds, one entry an operation.

    gets: of a value that eight nodes hold, until the first of them answered. closest: of all eight nodes closest to a
    key. stores: the same and the storing. found: gets that found the value. get_datagrams: sent for the mean get.
    true_replicas: share of the eight closest living nodes that hold what was stored. contacts: of the mean table.
    """

    gets: list[float]
    closest: list[float]
    stores: list[float]
    found: int
    get_datagrams: float
    true_replicas: float
    contacts: float
    log_hash: str


@dataclass(frozen=True)
class SwarmReport:
    """What `check_swarm` saw. found of asked: gets of records whose owner lived. bytes_per_second: of the mean node.

    violations: promises that were broken, in words; empty if all were kept.
    """

    asked: int
    found: int
    bytes_per_second: float
    violations: tuple[str, ...]
    events: int
    log_hash: str


class Swarm:
    """A network of simulated nodes, known by their numbers 0, 1, 2, ...

    Args:
        nodes: so many join, ten a second, each through two of those before it; with `settled=True` they are there at
            once, with routing tables as they are after hours.
        seed: all randomness follows from it.
        rtt: seconds between any two nodes and back, or the least and the most of them, drawn anew for each datagram;
            None for the regions of the world.
        loss, duplicate: share of datagrams.
        settled: see `nodes`.
        sealed: real encryption of packets instead of a keyed hash of the same size, about ten times slower.

    Raises:
        InvalidArgument: a share outside 0..1, or a number out of range.
    """

    def __init__(
        self,
        nodes: int,
        *,
        seed: int = 0,
        rtt: Rtt = None,
        loss: float = 0.0,
        duplicate: float = 0.0,
        settled: bool = False,
        sealed: bool = False,
    ) -> None:
        _check_count("nodes", nodes, 1, MOST_NODES)
        links = _checked_links(rtt, loss, duplicate)
        self._core = _core.Swarm(_checked_seed(seed), links, loss, duplicate, sealed)
        for i in range(nodes):
            if settled:
                self._core.add([], False)
            else:
                self.add(peers=[0, i // 2] if i else [])
                self.run(0.1)
        if settled:
            self._core.settle()

    def add(self, peers: Sequence[int] = (), client_mode: bool = False) -> int:
        """Start one more node that joins through `peers`; returns its number."""
        return int(self._core.add(list(peers), client_mode))

    def run(self, duration: float) -> None:
        """Let so many virtual seconds pass, at most 3600."""
        if not 0 <= duration <= 3600:
            raise InvalidArgument(f"duration: expected 0 to 3600 seconds, got {duration!r}")
        self._core.run(duration)

    def store(self, node: int, name: bytes, value: bytes, expiration: float = 60.0) -> Timed:
        """Let a node store a value for at most 600 s, and time pass until it is done."""
        if not 0 < expiration <= 600:
            raise InvalidArgument(f"expiration: expected seconds above 0 and at most 600, got {expiration!r}")
        replicas, taken = self._core.store(node, name, value, expiration)
        return Timed(taken, replicas=replicas)

    def get(self, node: int, name: bytes) -> Timed:
        """Let a node look for all values under a name, and time pass until it is done."""
        values, taken = self._core.get(node, name)
        return Timed(taken, values=tuple(values))

    def kill(self, node: int) -> None:
        """Nothing reaches the node or leaves it until it is revived."""
        self._core.set_up(node, False)

    def revive(self, node: int) -> None:
        """The same node, which remembers everything."""
        self._core.set_up(node, True)

    def freeze(self, node: int) -> None:
        """As SIGSTOP does: what arrives waits, 256 datagrams at most."""
        self._core.set_frozen(node, True)

    def thaw(self, node: int) -> None:
        """As SIGCONT does."""
        self._core.set_frozen(node, False)

    def partition(self, apart: Sequence[int]) -> None:
        """Cut these nodes off from all others, and mend the last cut; an empty list cuts nothing."""
        self._core.set_partition(list(apart))

    def set_links(self, rtt: Rtt = None, loss: float = 0.0, duplicate: float = 0.0) -> None:
        """From now on; see the class."""
        self._core.set_links(_checked_links(rtt, loss, duplicate), loss, duplicate)

    def status(self, node: int) -> SwarmStatus:
        """How a node sees itself."""
        return SwarmStatus(**self._core.status(node))

    def __len__(self) -> int:
        return int(self._core.size)

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return float(self._core.now)

    @property
    def events(self) -> int:
        """Datagrams delivered and timers fired so far."""
        return int(self._core.events)

    @property
    def log_hash(self) -> str:
        """A SHA-256 of every event so far."""
        return str(self._core.log_hash)


def study_lookups(
    nodes: int,
    *,
    seed: int = 1,
    rtt: Rtt = None,
    loss: float = 0.0,
    dead: float = 0.0,
    lookups: int = 1000,
    large_table: bool = False,
    progress: Progress | None = None,
) -> LookupTimes:
    """Measure lookups in a network in its steady state: tables as upkeep leaves them, then a share of nodes dies.

    `large_table` is that of `TesseractNetwork`. 100,000 nodes need about 8 GB and a few minutes. `progress` is called
    with what is being done, how much of it is done, and how much there is.

    Raises:
        InvalidArgument: fewer than 20 nodes, a share outside 0..1, or a number out of range.
    """
    _check_count("nodes", nodes, LEAST_NODES, MOST_NODES)
    _check_count("lookups", lookups, 1, 1_000_000)
    links = _checked_links(rtt, loss, 0.0)
    if not 0 <= dead <= 0.9:
        raise InvalidArgument(f"dead: expected a share between 0 and 0.9, got {dead!r}")
    study = _core.study_lookups(nodes, _checked_seed(seed), links, loss, dead, lookups, large_table, progress)
    return LookupTimes(
        study["gets"],
        study["closests"],
        study["stores"],
        study["found"],
        study["get_datagrams"],
        study["true_replicas"],
        study["table_contacts"],
        study["log_hash"],
    )


def check_swarm(seed: int, nodes: int = 500, duration: float = 600.0, sealed: bool = False) -> SwarmReport:
    """Let a swarm live through loss, deaths, churn, a partition, frozen, deaf and mute nodes; see what it kept.

    Args:
        seed: all that happens follows from it.
        nodes: at least 20.
        duration: virtual seconds, 360 to 3600.
        sealed: see `Swarm`.

    Raises:
        InvalidArgument: a number out of range.
    """
    _check_count("nodes", nodes, LEAST_NODES, MOST_NODES)
    if not LEAST_CHECK <= duration <= 3600:
        raise InvalidArgument(f"duration: expected 360 to 3600 seconds, got {duration!r}")
    report = _core.check_swarm(_checked_seed(seed), nodes, duration, sealed)
    return SwarmReport(
        report["asked"],
        report["found"],
        report["bytes_per_second"],
        tuple(report["violations"]),
        report["events"],
        report["log_hash"],
    )


def _checked_seed(seed: int) -> int:
    _check_count("seed", seed, 0, 2**64 - 1)
    return seed


def _check_count(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(f"{name}: expected an integer between {least} and {most}, got {value!r}")


def _checked_links(rtt: Rtt, loss: float, duplicate: float) -> tuple[float, float] | None:
    """The least and the most seconds of a round trip."""
    least, most = rtt if isinstance(rtt, tuple) else (rtt, rtt)
    if least is not None and not (most is not None and 0 < least <= most <= 10):
        raise InvalidArgument(f"rtt: expected seconds above 0 and at most 10, a pair of them, or None, got {rtt!r}")
    for name, share in (("loss", loss), ("duplicate", duplicate)):
        if not 0 <= share <= 1:
            raise InvalidArgument(f"{name}: expected a share between 0 and 1, got {share!r}")
    return None if least is None or most is None else (least, most)
