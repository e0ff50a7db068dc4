"""`TesseractNetwork`'s experts: servers declare them, trainers find them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

from learning_at_home._network_arguments import checked_port, grid_size_of, resolved, schema_hash_of, uid_list
from learning_at_home._network_calls import TIMEOUT, NetworkCalls, awaited
from learning_at_home.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import nn

    from learning_at_home.client.remote_expert import RemoteExpert
    from learning_at_home.network import TesseractNetwork

    Experts: TypeAlias = list[RemoteExpert | None]

UPDATE_PERIOD = 20.0  # seconds between declarations of a server
EXPIRATION = 60.0  # seconds after its last declaration an expert is forgotten
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


class ExpertCalls(NetworkCalls):
    """Declare, find and watch."""

    _watched: set[tuple[str, tuple[int, ...]]]
    _warned: set[tuple[str, tuple[int, ...]]]

    # --- experts, as servers see them -----------------------------------------------------------------------

    @overload
    def declare_experts(
        self,
        uids: Iterable[str],
        addr: str | Sequence[str] | None,
        port: int,
        wait_timeout: float = ...,
        *,
        schema_hashes: Mapping[str, int] | None = ...,
        boot_id: int = ...,
        update_period: float = ...,
        expiration: float | None = ...,
        grid_size: Sequence[int] | None = ...,
        timeout: float = ...,
        return_future: Literal[False] = ...,
    ) -> int: ...
    @overload
    def declare_experts(
        self,
        uids: Iterable[str],
        addr: str | Sequence[str] | None,
        port: int,
        wait_timeout: float = ...,
        *,
        schema_hashes: Mapping[str, int] | None = ...,
        boot_id: int = ...,
        update_period: float = ...,
        expiration: float | None = ...,
        grid_size: Sequence[int] | None = ...,
        timeout: float = ...,
        return_future: Literal[True],
    ) -> Future[int]: ...
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
        grid_size: Sequence[int] | None = None,
        timeout: float = TIMEOUT,
        return_future: bool = False,
    ) -> int | Future[int]:
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
            grid_size: of the grid they belong to. Grids of more than 65536 experts are searched by beam
                (`find_best_experts`), for which servers keep further records: one for each leading tuple of
                coordinates they serve experts of. None: the grid reaches as far as these experts do.
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
        answer = self._running.declare(
            unique,
            hashes,
            addresses,
            checked_port("port", port),
            boot_id,
            update_period,
            expiry,
            None if grid_size is None else math.prod(grid_size_of("grid_size", grid_size)),
            min(limit, _JOIN_TIMEOUT),
            limit,
        )
        return self._result(answer, int, return_future)

    async def adeclare_experts(
        self, uids: Iterable[str], addr: str | Sequence[str] | None, port: int, **options: Any
    ) -> int:
        """`declare_experts` with the same options, to await."""
        return await awaited(self.declare_experts(uids, addr, port, **options, return_future=True))

    @overload
    def undeclare_experts(self, timeout: float = ..., *, return_future: Literal[False] = ...) -> None: ...
    @overload
    def undeclare_experts(self, timeout: float = ..., *, return_future: Literal[True]) -> Future[None]: ...
    def undeclare_experts(self, timeout: float = TIMEOUT, *, return_future: bool = False) -> Future[None] | None:
        """Take back everything declared: trainers stop calling at their next refresh, not at expiry."""
        return self._result(self._running.undeclare(timeout), _nothing, return_future)

    async def aundeclare_experts(self, timeout: float = TIMEOUT) -> None:
        """`undeclare_experts`, to await."""
        await awaited(self.undeclare_experts(timeout, return_future=True))

    # --- experts, as trainers see them ----------------------------------------------------------------------

    @overload
    def get_experts(
        self,
        uids: Iterable[str],
        heartbeat_expiration: float | None = ...,
        timeout: float = ...,
        *,
        return_future: Literal[False] = ...,
    ) -> Experts: ...
    @overload
    def get_experts(
        self,
        uids: Iterable[str],
        heartbeat_expiration: float | None = ...,
        timeout: float = ...,
        *,
        return_future: Literal[True],
    ) -> Future[Experts]: ...
    def get_experts(
        self,
        uids: Iterable[str],
        heartbeat_expiration: float | None = None,
        timeout: float = TIMEOUT,
        *,
        return_future: bool = False,
    ) -> Experts | Future[Experts]:
        """Find who serves each uid; None for those nobody alive declares.

        heartbeat_expiration: accepted for compatibility: a declaration carries its own expiry.
        """
        from learning_at_home.client.remote_expert import RemoteExpert

        wanted = uid_list("uids", uids)

        def experts(found: list[tuple[str, int, bytes, int] | None]) -> Experts:
            return [
                None if place is None else RemoteExpert(uid, place[0], place[1], key=place[2])
                for uid, place in zip(wanted, found, strict=True)
            ]

        return self._result(self._running.find_experts(wanted, timeout), experts, return_future)

    async def aget_experts(self, uids: Iterable[str], timeout: float = TIMEOUT) -> Experts:
        """`get_experts`, to await."""
        return await awaited(self.get_experts(uids, None, timeout, return_future=True))

    @overload
    def first_k_active(
        self,
        prefixes: Iterable[str],
        k: int,
        heartbeat_expiration: float | None = ...,
        max_prefetch: int | None = ...,
        timeout: float = ...,
        *,
        return_future: Literal[False] = ...,
    ) -> list[str]: ...
    @overload
    def first_k_active(
        self,
        prefixes: Iterable[str],
        k: int,
        heartbeat_expiration: float | None = ...,
        max_prefetch: int | None = ...,
        timeout: float = ...,
        *,
        return_future: Literal[True],
    ) -> Future[list[str]]: ...
    def first_k_active(
        self,
        prefixes: Iterable[str],
        k: int,
        heartbeat_expiration: float | None = None,
        max_prefetch: int | None = None,
        timeout: float = TIMEOUT,
        *,
        return_future: bool = False,
    ) -> list[str] | Future[list[str]]:
        """The first k of these uid prefixes, in their order, under which any expert is alive; or fewer.

        heartbeat_expiration, max_prefetch: accepted for compatibility: one lookup answers for a whole grid.
        """
        if k < 1:
            raise InvalidArgument(f"k: expected at least 1, got {k}")
        answer = self._running.first_k_active(uid_list("prefixes", prefixes), k, timeout)
        return self._result(answer, list, return_future)

    async def afirst_k_active(self, prefixes: Iterable[str], k: int, timeout: float = TIMEOUT) -> list[str]:
        """`first_k_active`, to await."""
        return await awaited(self.first_k_active(prefixes, k, timeout=timeout, return_future=True))

    def fetch_expert(
        self, uid: str, module: nn.Module | Callable[[], nn.Module] | None = None, timeout: float = 60.0
    ) -> Any:
        """Download an expert from its server: a state_dict, or `module` (or what it returns) with that loaded.

        Raises ExpertNotFound; NotPermitted by servers without `allow_fetch=True`; SchemaMismatch: other tensors; ...
        """
        from learning_at_home.client.fetch import fetch_expert

        return fetch_expert(cast("TesseractNetwork", self), uid, module, timeout)

    def watch(self, prefix: str, grid: Sequence[int], period: float = 1.0) -> None:
        """Keep the alive map of a grid fresh in the background: the network tells this node what changes.

        period: accepted for compatibility: nothing is asked for again and again.
        """
        key = (prefix, tuple(int(size) for size in grid))
        self._running.watch(prefix, list(key[1]))
        self._watched.add(key)

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


def _nothing(_: object) -> None:
    return None
