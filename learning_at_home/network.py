"""`TesseractNetwork`: a node of the distributed hash table that tells which experts live where."""

from __future__ import annotations

import os
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, TypedDict, overload

from learning_at_home._net_thread import get_net_thread
from learning_at_home._network_arguments import (
    address_for_others,
    checked_peer,
    checked_port,
    join_address,
    parse_announce,
    resolved,
)
from learning_at_home._network_beam import BeamCalls, BestExperts
from learning_at_home._network_calls import awaited
from learning_at_home._network_experts import EXPIRATION, UPDATE_PERIOD, AliveExpert, ExpertCalls
from learning_at_home._network_listen import ListenCalls, Listener
from learning_at_home._network_records import RecordCalls
from learning_at_home._state_file import StateFile
from learning_at_home.admission import Admission, checked_admission
from learning_at_home.errors import InvalidArgument

__all__ = [
    "EXPIRATION",
    "NETWORK_ID",
    "UPDATE_PERIOD",
    "AliveExpert",
    "BestExperts",
    "Listener",
    "NetworkStatus",
    "TesseractNetwork",
]

NETWORK_ID = "learning_at_home"


class NetworkStatus(TypedDict):
    """What a node knows of itself, and what it counted since its start."""

    peers: int  # in its routing table
    ready: bool  # let in once, or without peers to join
    isolated: bool  # nobody answers; it goes on looking for a way in
    clock_offset_ms: int  # what this machine's clock lacks of the network's time; corrected by itself
    reachability: str  # "public", "unreachable" (then read-only until that ends), or "unknown"
    behind_nat: bool | None  # None until peers told where they see us
    observed: str | None  # our address as most peers see it
    packets_in: int
    packets_out: int
    bytes_in: int  # of UDP payload
    bytes_out: int
    bad_packets: int  # malformed, not for us, or of another network
    requests_answered: int
    requests_failed: int  # ours, never answered
    newcomers_refused: int  # packets of unknown keys beyond what one subnet, or all, may send
    not_admitted: int  # messages of nodes without a valid certificate
    refusals: int  # of ours, by nodes that do not admit us
    records: int  # held
    operations: int  # lookups, stores and pings under way
    open_calls: int  # of this program, waiting for answers


class TesseractNetwork(RecordCalls, ListenCalls, ExpertCalls, BeamCalls):
    """A node of the network: a Kademlia DHT over UDP, in this process, on its one network thread.

    Every node stores signed records for others. Servers declare their experts, trainers find them. Starting
    never waits: a node whose peers do not answer works alone and goes on looking for them.

    Every call that waits for other nodes has three forms, of the same results and errors: ``network.get(name)``
    waits; ``network.get(name, return_future=True)`` returns a `concurrent.futures.Future` at once; and
    ``await network.aget(name)`` waits in an event loop. Futures are resolved, and their callbacks run, in one thread
    of the process: a callback that takes long delays the others. At most 4,096 calls of a network may be open.
    ``network.listen(name, callback)`` goes on telling, in the same thread, as ``async for`` does over
    ``network.alisten(name)``.

    Args:
        *initial_peers: (host, port) of nodes to join, any number; none starts a network of its own.
        port: UDP; 0 picks a free one (see the `port` attribute).
        start: start at once.
        host: address to listen on; "0.0.0.0" is every address, IPv6 too.
        identity: the 32-byte seed of this node's Ed25519 key; None makes a new one. Keep it secret: who has
            it can replace this node's records.
        client_mode: ask, but store nothing for others and enter nobody's routing table.
        large_table: know up to about 1,600 nodes instead of 600: among 10,000 nodes most lookups then take one
            round trip instead of two, for about 60 KiB of memory and some upkeep.
        network_id: nodes of different ids do not understand each other.
        state_file: where the node keeps its contacts, its records and, unless `identity` is given, its key; written
            every 5 minutes and at shutdown, readable by its owner alone. A restart comes back through those contacts
            in one round trip. A damaged file is a RuntimeWarning and set aside as ``.bad``.
        admission: who may take part, the same for all nodes of a run; see `learning_at_home.admission.Admission`.

    Raises:
        InvalidArgument: a host that does not resolve, a port out of range or in use, a bad seed, a
            certificate that is not this node's.
        RuntimeError: use before `start()`, after `shutdown()`, or in a forked child like a DataLoader worker.
    """

    def __init__(
        self,
        *initial_peers: tuple[str, int],
        port: int = 8081,
        start: bool = False,
        host: str = "0.0.0.0",
        identity: bytes | None = None,
        client_mode: bool = False,
        large_table: bool = False,
        network_id: str = NETWORK_ID,
        state_file: str | os.PathLike[str] | None = None,
        admission: Admission | None = None,
    ):
        if identity is not None and (not isinstance(identity, bytes) or len(identity) != 32):
            raise InvalidArgument("identity: expected a seed of 32 bytes, or None for a new one")
        if not isinstance(network_id, str) or not 1 <= len(network_id.encode()) <= 64:
            raise InvalidArgument(f"network_id: expected 1 to 64 bytes of text, got {network_id!r}")
        self._wanted_port = checked_port("port", port, lowest=0)
        self._host = resolved("host", host)
        self._peers = [checked_peer(peer) for peer in initial_peers]
        self._state_file = None if state_file is None else StateFile(state_file, network_id)
        saved = None if self._state_file is None else self._state_file.load()
        self._state = None if saved is None else saved.state
        self._keeps_identity = identity is None
        self._seed = identity or (saved and saved.identity) or os.urandom(32)
        self._client_mode = client_mode
        self._large_table = large_table
        self._network_id = network_id
        self._admission = checked_admission(admission)
        self._thread: Any = None
        self._core = None
        self._dispatcher = None
        self._listeners = {}
        self._closed = False
        self._watched = set()
        self._warned = set()
        if start:
            self.start()

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the socket and look for the initial peers in the background. Safe to call twice."""
        if self._closed:
            raise RuntimeError("this network was shut down; make a new TesseractNetwork")
        if self._core is not None:
            return
        from learning_at_home import _core

        self._admission.check(self._network_id, self.public_key)
        peers = [(resolved("initial_peers", host), port) for host, port in self._peers]
        self._thread = get_net_thread()
        try:
            self._core = _core.Network(
                self._thread,
                self._seed,
                self._host,
                self._wanted_port,
                peers,
                self._network_id,
                self._client_mode,
                self._large_table,
                self._state,
                self._admission.owner_key,
                self._admission.own_certificate,
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"port: {error}; port=0 picks a free one") from None
        if self._state_file is not None:
            self._state_file.keep(self._saved_state)

    def shutdown(self) -> None:
        """Leave the network and free the port; experts declared here vanish as they expire."""
        self._closed = True
        core, self._core = self._core, None
        if core is not None:
            state = None if self._state_file is None else core.save_state(self._seed if self._keeps_identity else None)
            core.close()
            if self._state_file is not None:
                self._state_file.close(state)
        self._end_listeners()
        self._dispatcher = None  # now that every call ended
        self._thread = None

    def _saved_state(self) -> bytes:
        return bytes(self._running.save_state(self._seed if self._keeps_identity else None))

    def renew_certificate(self, certificate: bytes) -> None:
        """Go on with a later certificate of the same owner; others see it with the next request to each of them.

        Raises InvalidArgument for one that is not this node's or expired, or if the network is open to all.
        """
        self._admission = self._admission.renewed(certificate, self._network_id, self.public_key)
        if self._core is not None:
            self._core.renew_certificate(certificate)

    def __enter__(self) -> TesseractNetwork:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __deepcopy__(self, memo: dict[int, Any]) -> TesseractNetwork:
        return self  # copies of a model share its network

    def __reduce__(self) -> Any:
        raise TypeError("a TesseractNetwork holds an open socket and cannot be pickled; make one in each process")

    def __repr__(self) -> str:
        state = "shut down" if self._closed else "running" if self.is_running else "not started"
        return f"TesseractNetwork(port={self.port}, {state})"

    @property
    def is_running(self) -> bool:
        """Between `start()` and `shutdown()`."""
        return self._core is not None

    @property
    def port(self) -> int:
        """The UDP port: the one asked for, once started the one in use."""
        return self._wanted_port if self._core is None else int(self._core.port)

    @property
    def identity(self) -> bytes:
        """The 32-byte seed of this node's key. Secret."""
        return self._seed

    @property
    def public_key(self) -> bytes:
        """32 bytes; what other nodes know this one by, and servers its calls."""
        from learning_at_home import _core

        return bytes(_core.public_key(self._seed))

    @overload
    def wait_ready(self, timeout: float = ..., *, return_future: Literal[False] = ...) -> bool: ...
    @overload
    def wait_ready(self, timeout: float = ..., *, return_future: Literal[True]) -> Future[bool]: ...
    def wait_ready(self, timeout: float = 10.0, *, return_future: bool = False) -> bool | Future[bool]:
        """Wait until an initial peer let this node in (at once if it has none); False after `timeout` s."""
        return self._result(self._running.wait_ready(timeout), bool, return_future)

    async def await_ready(self, timeout: float = 10.0) -> bool:
        """`wait_ready`, to await."""
        return await awaited(self.wait_ready(timeout, return_future=True))

    def status(self) -> NetworkStatus:
        """What the node knows of itself: the keys of `NetworkStatus`."""
        return self._running.status()

    def own_address(self, announce: str | None = None, wait: float = 2.0) -> tuple[str, int]:
        """Where others can reach this node, as an initial peer of theirs: (host, port).

        announce: "host", "host:port" or "[::1]:port", where the node cannot know (containers, forwarded ports).
        wait: seconds to wait for peers that see our address; without any, our own routes must tell.
        """
        if announce is not None:
            host, port = parse_announce(announce)
            return host, self.port if port is None else port
        if self._peers:
            self.wait_ready(wait)
        return address_for_others(self._host, self.status()["observed"]), self.port

    def initial_peers_line(self, announce: str | None = None) -> str:
        """What others paste into a command line to join here: ``--peer HOST:PORT``. See `own_address`."""
        return f"--peer {join_address(*self.own_address(announce))}"

    @overload
    def ping(
        self, host: str, port: int, timeout: float = ..., *, return_future: Literal[False] = ...
    ) -> float | None: ...
    @overload
    def ping(
        self, host: str, port: int, timeout: float = ..., *, return_future: Literal[True]
    ) -> Future[float | None]: ...
    def ping(
        self, host: str, port: int, timeout: float = 2.0, *, return_future: bool = False
    ) -> float | Future[float | None] | None:
        """Round trip in seconds of a PING that the other node's network thread answers, or None."""
        answer = self._running.ping(resolved("host", host), checked_port("port", port), timeout)
        return self._result(answer, _as_it_is, return_future)

    async def aping(self, host: str, port: int, timeout: float = 2.0) -> float | None:
        """`ping`, to await."""
        return await awaited(self.ping(host, port, timeout, return_future=True))


def _as_it_is(round_trip: float | None) -> float | None:
    return round_trip
