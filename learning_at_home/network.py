"""`TesseractNetwork`: a node of the distributed hash table that tells which experts live where."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from learning_at_home._net_thread import get_net_thread
from learning_at_home._network_arguments import (
    address_for_others,
    checked_peer,
    checked_port,
    join_address,
    parse_announce,
    record_name,
    resolved,
    schema_hash_of,
    uid_list,
)
from learning_at_home.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import nn

    from learning_at_home.client.remote_expert import RemoteExpert

UPDATE_PERIOD = 20.0  # seconds between declarations of a server
EXPIRATION = 60.0  # seconds after its last declaration an expert is forgotten
NETWORK_ID = "learning_at_home"
_TIMEOUT = 10.0  # seconds a lookup or store may take; it ends as soon as it has its answers
_JOIN_TIMEOUT = 3.0  # seconds a declaration waits for a way into the network before going on alone


@dataclass(frozen=True)
class AliveExpert:
    """One living expert of a watched grid.

    flat_id: its row-major position in the grid. boot_id: of its server's incarnation; a restart changes it.
    """

    flat_id: int
    uid: str
    host: str
    port: int
    public_key: bytes
    boot_id: int


class TesseractNetwork:
    """A node of the network: a Kademlia DHT over UDP, in this process, on its one network thread.

    Every node stores signed records for others. Servers declare their experts, trainers find them. Starting
    never waits: a node whose peers do not answer works alone and goes on looking for them.

    Args:
        *initial_peers: (host, port) of nodes to join, any number; none starts a network of its own.
        port: UDP; 0 picks a free one (see the `port` attribute).
        start: start at once.
        host: address to listen on; "0.0.0.0" is every address, IPv6 too.
        identity: the 32-byte seed of this node's Ed25519 key; None makes a new one. Keep it secret: who has
            it can replace this node's records.
        client_mode: ask, but store nothing for others and enter nobody's routing table.
        network_id: nodes of different ids do not understand each other.

    Raises:
        InvalidArgument: a host that does not resolve, a port out of range or in use, a bad seed.
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
        network_id: str = NETWORK_ID,
    ):
        if identity is not None and (not isinstance(identity, bytes) or len(identity) != 32):
            raise InvalidArgument("identity: expected a seed of 32 bytes, or None for a new one")
        if not isinstance(network_id, str) or not 1 <= len(network_id.encode()) <= 64:
            raise InvalidArgument(f"network_id: expected 1 to 64 bytes of text, got {network_id!r}")
        self._wanted_port = checked_port("port", port, lowest=0)
        self._host = resolved("host", host)
        self._peers = [checked_peer(peer) for peer in initial_peers]
        self._seed = os.urandom(32) if identity is None else identity
        self._client_mode = client_mode
        self._network_id = network_id
        self._thread: Any = None
        self._core: Any = None
        self._closed = False
        self._watched: dict[tuple[str, tuple[int, ...]], float] = {}
        self._warned: set[tuple[str, tuple[int, ...]]] = set()
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
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"port: {error}; port=0 picks a free one") from None

    def shutdown(self) -> None:
        """Leave the network and free the port; experts declared here vanish as they expire."""
        self._closed = True
        core, self._core = self._core, None
        if core is not None:
            core.close()
        self._thread = None

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

    def wait_ready(self, timeout: float = 10.0) -> bool:
        """Wait until an initial peer let this node in (at once if it has none); False after `timeout` s."""
        return bool(self._running.wait_ready(timeout))

    def status(self) -> dict[str, Any]:
        """What the node knows of itself.

        Keys: peers (in its table), ready, isolated, packets_in, packets_out, bytes_in, bytes_out,
        bad_packets, requests_answered, requests_failed, records (held), operations (open), observed (our
        address as peers see it, or None).
        """
        return dict(self._running.status())

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

    def ping(self, host: str, port: int, timeout: float = 2.0) -> float | None:
        """Round trip in seconds of a PING that the other node's network thread answers, or None."""
        return self._running.ping(resolved("host", host), checked_port("port", port), timeout)

    # --- records --------------------------------------------------------------------------------------------

    def store(self, name: str | bytes, value: bytes, expiration: float = 60.0, timeout: float = _TIMEOUT) -> int:
        """Store 1 to 900 bytes under a name, signed by this node, for `expiration` seconds (at most 600).

        A later value replaces this node's earlier one; other nodes keep theirs. Returns the number of copies.
        """
        return int(self._running.store(record_name(name), value, expiration, timeout))

    def get(self, name: str | bytes, timeout: float = _TIMEOUT) -> list[tuple[bytes, bytes]]:
        """The live values under a name, as (owner's public key, value), newest first."""
        return list(self._running.get(record_name(name), timeout))

    # --- experts, as servers see them -----------------------------------------------------------------------

    def declare_experts(
        self,
        uids: Iterable[str],
        addr: str | Sequence[str] | None,
        port: int,
        wait_timeout: float = 0,
        *,
        schema_hashes: Mapping[str, int] | None = None,
        boot_id: int = 1,
        update_period: float = UPDATE_PERIOD,
        expiration: float | None = None,
        timeout: float = _TIMEOUT,
    ) -> int:
        """Declare all experts served at addr:port, now and every `update_period`, until `undeclare_experts`.

        Replaces what this node declared before: pass everything in one call.

        Args:
            uids: ``prefix(.int)*``, at most 128 bytes each, no leading zeros.
            addr: where trainers call; several in order of preference, or None for the address our peers see.
            port: the server's TCP port.
            wait_timeout: of the original; more than 0 is a `timeout` for the first round of stores.
            schema_hashes: 64-bit hash of each uid's schema; trainers use what most of a prefix declares.
            boot_id: of this incarnation of the server.
            update_period, expiration: seconds; three periods by default, 600 at most.
            timeout: seconds for the first round of stores.

        Returns:
            Copies of the record that has fewest, this node's own included.
        """
        unique = list(dict.fromkeys(uid_list("uids", uids)))
        hashes = [schema_hash_of(schema_hashes, uid) for uid in unique]
        names = [] if addr is None else [addr] if isinstance(addr, str) else list(addr)
        addresses = [resolved("addr", name) for name in names]
        if not 0 < boot_id < 2**64:
            raise InvalidArgument(f"boot_id: expected 1 to 2**64 - 1, got {boot_id}")
        expiry = min(3 * update_period, 590.0) if expiration is None else expiration
        limit = wait_timeout if wait_timeout > 0 else timeout
        core = self._running
        core.wait_ready(min(limit, _JOIN_TIMEOUT))
        return int(
            core.declare(unique, hashes, addresses, checked_port("port", port), boot_id, update_period, expiry, limit)
        )

    def undeclare_experts(self, timeout: float = _TIMEOUT) -> None:
        """Take back everything declared: trainers stop calling at their next refresh, not at expiry."""
        self._running.undeclare(timeout)

    # --- experts, as trainers see them ----------------------------------------------------------------------

    def get_experts(
        self, uids: Iterable[str], heartbeat_expiration: float | None = None, timeout: float = _TIMEOUT
    ) -> list[RemoteExpert | None]:
        """Find who serves each uid; None for those nobody alive declares.

        heartbeat_expiration: accepted for compatibility: a declaration carries its own expiry.
        """
        from learning_at_home.client.remote_expert import RemoteExpert

        wanted = uid_list("uids", uids)
        found = self._running.find_experts(wanted, timeout)
        return [
            None if place is None else RemoteExpert(uid, place[0], place[1], key=place[2])
            for uid, place in zip(wanted, found, strict=True)
        ]

    def first_k_active(
        self,
        prefixes: Iterable[str],
        k: int,
        heartbeat_expiration: float | None = None,
        max_prefetch: int | None = None,
        timeout: float = _TIMEOUT,
    ) -> list[str]:
        """The first k of these uid prefixes, in their order, under which any expert is alive; or fewer.

        heartbeat_expiration, max_prefetch: accepted for compatibility: one lookup answers for a whole grid.
        """
        if k < 1:
            raise InvalidArgument(f"k: expected at least 1, got {k}")
        return list(self._running.first_k_active(uid_list("prefixes", prefixes), k, timeout))

    def fetch_expert(
        self, uid: str, module: nn.Module | Callable[[], nn.Module] | None = None, timeout: float = 60.0
    ) -> Any:
        """Download an expert from its server: a state_dict, or `module` (or what it returns) with that loaded.

        Raises ExpertNotFound; NotPermitted by servers without `allow_fetch=True`; SchemaMismatch: other tensors; ...
        """
        from learning_at_home.client.fetch import fetch_expert

        return fetch_expert(self, uid, module, timeout)

    def watch(self, prefix: str, grid: Sequence[int], period: float = 1.0) -> None:
        """Keep the alive map of a grid fresh in the background, asking the network every `period` seconds."""
        key = (prefix, tuple(int(size) for size in grid))
        known = self._watched.get(key)
        if known is not None and known <= period:
            self._running  # noqa: B018 - the same errors as a first call
            return
        self._running.watch(prefix, list(key[1]), period)
        self._watched[key] = period

    def alive(self, prefix: str, grid: Sequence[int]) -> tuple[int, Sequence[tuple[int, str, str, int, bytes, int]]]:
        """Who is alive in a grid, from the map kept by `watch` (started here if it was not). Never waits.

        Returns:
            A version that grows with every change (0: no answer yet), and for each living expert one tuple
            (flat_id, uid, host, port, public_key, boot_id), the fields of `AliveExpert`, by flat_id.
        """
        key = self._watching(prefix, grid)
        version, experts, _ = self._running.alive(prefix, key)
        self._warn_of_other_schemas(prefix, key)
        return version, experts

    def replicas(self, prefix: str, grid: Sequence[int]) -> dict[int, tuple[tuple[str, int, bytes, int], ...]]:
        """Who else serves the experts of `alive`: the same uid, the same schema, another server.

        Which of the servers of an expert `alive` names is a lasting choice of this node's, different from other
        nodes' and from expert to expert (rendezvous hashing), so that replicas share the work. Each learns from the
        gradients that it gets: nothing keeps their weights alike.

        Returns:
            flat_id → (host, port, public_key, boot_id) of up to 7 further servers, in the order in which they
            would take over. Experts that one server alone serves are left out.
        """
        return dict(self._running.alive(prefix, self._watching(prefix, grid))[2])

    def alive_experts(self, prefix: str, grid: Sequence[int]) -> list[AliveExpert]:
        """The experts of `alive`, with names for their fields."""
        return [AliveExpert(*expert) for expert in self.alive(prefix, grid)[1]]

    def alive_version(self, prefix: str, grid: Sequence[int]) -> int:
        """The version of `alive`, cheaply."""
        return int(self._running.alive_version(prefix, self._watching(prefix, grid)))

    def wait_alive(self, prefix: str, grid: Sequence[int], version: int = 1, timeout: float = 5.0) -> bool:
        """Wait until `alive` has at least this version; False after `timeout` seconds."""
        return bool(self._running.wait_alive(prefix, self._watching(prefix, grid), version, timeout))

    def suspect(self, public_key: bytes, seconds: float = EXPIRATION, boot_id: int | None = None) -> None:
        """Leave a server out of maps and lookups here: for `seconds`, or until its boot_id changes."""
        self._running.suspect(public_key, boot_id, seconds)

    def forgive(self, public_key: bytes) -> None:
        """End a suspicion: the server answered."""
        self._running.forgive(public_key)

    # --- inside ---------------------------------------------------------------------------------------------

    @property
    def _running(self) -> Any:
        if self._core is None:
            if self._closed:
                raise RuntimeError("this TesseractNetwork was shut down")
            raise RuntimeError("this TesseractNetwork is not started: call start() or use `with network:`")
        return self._core

    def _watching(self, prefix: str, grid: Sequence[int]) -> list[int]:
        key = (prefix, tuple(grid))
        if key not in self._watched:
            self.watch(prefix, grid)
        return list(key[1])

    def _warn_of_other_schemas(self, prefix: str, grid: list[int]) -> None:
        key = (prefix, tuple(grid))
        if key in self._warned:
            return
        others = self._running.other_schemas(prefix, grid)
        if others:
            self._warned.add(key)
            warnings.warn(
                f"{others} experts of prefix '{prefix}' have another schema than most and are left out",
                RuntimeWarning,
                stacklevel=3,
            )
