"""`TesseractServer`: experts on this machine, for trainers anywhere."""

from __future__ import annotations

import atexit
import ipaddress
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from learning_at_home._net_thread import get_net_thread
from learning_at_home._network_arguments import grid_size_of, parse_announce
from learning_at_home.client.transport import resolve
from learning_at_home.errors import InvalidArgument, LearningAtHomeError
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.runtime import TesseractRuntime
from learning_at_home.server.checkpoints import Checkpoints

if TYPE_CHECKING:
    from learning_at_home.network import TesseractNetwork

logger = logging.getLogger(__name__)

_WITHDRAW_TIMEOUT = 0.5  # seconds; peers that never hear of it see the declaration expire
_PORT_TRIES = 20  # port 0: TCP picks one, whose UDP twin may be taken


class TesseractServer:
    """Serves experts over ZeroMQ with CURVE encryption, and declares them in the network every `update_period`.

    One process, one network thread, one runtime thread a device. Use it as ``with server:``, call
    ``start(block=False)``, or ``start()`` / ``start=True`` to serve until Ctrl-C: the first lets the running
    batch finish and returns, a second one ends the process at once. A server that still runs when the
    interpreter exits is shut down first.

    Args:
        network: where to declare the experts; it is started if it was not. None serves without declaring: callers
            then need host and port.
        expert_backends: uid → `ExpertBackend`.
        addr: the address to listen on and to announce. A wildcard ("0.0.0.0") needs `announce`.
        port: TCP, and UDP for callers that ask for the server's key; 0 picks one (see the `port` attribute).
        update_period: seconds between declarations; they expire after three periods.
        grid_size: of the grid that the experts belong to; needed if it has more than 65536 cells, see
            `TesseractNetwork.declare_experts`.
        announce: the address that trainers are told, where it differs from `addr`: "host", or with forwarded ports
            "host:port" or "[::1]:port" (forward the same UDP port too if trainers know nothing but the address).
        insecure: listen without encryption; loopback addresses only, and no network: whom the network tells of a
            server calls it encrypted.
        checkpoint_dir: where to save the experts, and to find them now if they were saved there; None saves nothing.
            Weights, optimizer with its settings, scheduler and number of updates come back (see `Checkpoints`).
        checkpoint_period: seconds between saves of experts that were updated, 60 by default.
        checkpoint_keep: generations of each expert to keep, 2 by default.
        allow_fetch: let anybody download the experts (`network.fetch_expert`); refused with `NotPermitted` by default.
        allow: the 32-byte Ed25519 public keys of callers that may connect (`TesseractNetwork.public_key` of a gate's
            network); None lets everybody in.
        deny: keys that may not; `deny()` adds to them. Callers refused raise `NotPermitted`.
        start: start and block, as in the original.
        conn_handler_processes: accepted for compatibility: one network thread serves every connection.
        **runtime_kwargs: of `TesseractRuntime`, e.g. `device`.

    Raises:
        InvalidArgument: an address, port or backend that cannot be served, a directory that cannot be used.
        SchemaMismatch: a checkpoint of another expert.
    """

    def __init__(
        self,
        network: TesseractNetwork | None,
        expert_backends: dict[str, ExpertBackend],
        addr: str = "127.0.0.1",
        port: int = 8080,
        conn_handler_processes: int = 1,
        update_period: float = 20.0,
        start: bool = False,
        *,
        grid_size: Sequence[int] | None = None,
        announce: str | None = None,
        insecure: bool = False,
        checkpoint_dir: str | Path | None = None,
        checkpoint_period: float = 60.0,
        checkpoint_keep: int = 2,
        allow_fetch: bool = False,
        allow: Iterable[bytes] | None = None,
        deny: Iterable[bytes] = (),
        **runtime_kwargs: Any,
    ):
        if not 0 <= port <= 65535:
            raise InvalidArgument(f"port: expected 0 to 65535, got {port}")
        if update_period <= 0 or update_period > 200:
            raise InvalidArgument(f"update_period: expected seconds above 0 and at most 200, got {update_period}")
        self.addr = resolve(addr)
        address = ipaddress.ip_address(self.addr)
        if address.is_unspecified and announce is None and network is not None:
            raise InvalidArgument(f"announce: needed with addr={addr!r}, so that trainers know where to call")
        if insecure and not address.is_loopback:
            raise InvalidArgument(f"insecure: only loopback addresses may go unencrypted, got addr={addr!r}")
        deny = tuple(deny)
        if insecure and network is not None:
            raise InvalidArgument("insecure: trainers that find a server in a network call it encrypted; network=None")
        if insecure and (allow is not None or deny):
            raise InvalidArgument("insecure: callers without encryption have no keys to allow or deny")
        self._allowed = None if allow is None else [_key("allow", key) for key in allow]
        self._denied = [_key("deny", key) for key in deny]
        host, self._announced_port = parse_announce(announce) if announce is not None else (self.addr, None)
        self.announce = resolve(host)
        self.network, self.insecure, self.update_period = network, insecure, update_period
        self.grid_size = None if grid_size is None else grid_size_of("grid_size", grid_size)
        self.boot_id = secrets.randbits(63) | 1
        self.port = port
        self.runtime = TesseractRuntime(expert_backends, allow_fetch=allow_fetch, **runtime_kwargs)
        self._checkpoints: Checkpoints | None = None
        if checkpoint_dir is not None:
            call = self.runtime.call_between_batches
            self._checkpoints = Checkpoints(
                checkpoint_dir, expert_backends, call, period=checkpoint_period, keep=checkpoint_keep
            )
            self._checkpoints.restore()
        self._seed = os.urandom(32) if network is None else network.identity
        self._hello: Any = None
        self._running = False
        self._closed = False
        self._ended = threading.Event()
        self._owner = os.getpid()
        if start:
            self.start()

    @property
    def experts(self) -> dict[str, ExpertBackend]:
        """What is served: uid → backend."""
        return self.runtime.expert_backends

    @property
    def announce_port(self) -> int:
        """The TCP port that trainers are told."""
        return self.port if self._announced_port is None else self._announced_port

    @property
    def last_checkpoint_error(self) -> str | None:
        """Why an expert could not be saved at the last attempt; None if all could."""
        return None if self._checkpoints is None else self._checkpoints.last_error

    def save_checkpoints(self) -> int:
        """Save the experts that were updated since they were saved, now; returns how many. See `checkpoint_dir`."""
        if self._checkpoints is None:
            raise InvalidArgument("checkpoint_dir: this server was made without one, so it saves nothing")
        return self._checkpoints.save()

    def start(self, block: bool = True) -> None:
        """Listen, declare, compute. With `block`, return after Ctrl-C or a `shutdown()` in another thread.

        While it blocks the main thread, a second Ctrl-C ends the process by SIGINT's default action: whoever
        asks twice does not want to wait for a long batch. A SIGINT handler of your own stays in charge.
        """
        if self._closed:
            raise RuntimeError("this server was shut down; make a new one")
        if not self._running:
            try:
                self._listen()
                self._running = True
                self.runtime.start()
                if self._checkpoints is not None:
                    self._checkpoints.start()
                atexit.register(self._end_with_interpreter)
                self._declare()
            except BaseException:
                self.shutdown()
                raise
        if block:
            self._serve_until_interrupted()

    def shutdown(self, timeout: float | None = None) -> bool:
        """Withdraw the declaration, refuse what waits, finish the running batch, free the port.

        Returns True if the running batch ended within `timeout` seconds; if not, its callers are told that
        the server is gone, and updates since the last period's checkpoints are not saved. Safe to call twice.
        """
        if self._closed:
            return self.runtime.shutdown(timeout)
        self._closed = True
        finished = False
        try:
            self._withdraw()
            finished = self.runtime.shutdown(timeout)
            return finished
        finally:  # also when the wait is interrupted
            self.runtime.core.close()
            if self._hello is not None:
                self._hello.close()
            if self._checkpoints is not None:
                self._checkpoints.close(save=finished)
            self._running = False
            self._ended.set()
            atexit.unregister(self._end_with_interpreter)

    def deny(self, key: bytes) -> None:
        """Let this caller (a 32-byte Ed25519 public key) in no more: its connections end, its calls are dropped.

        Raises:
            InvalidArgument: not a public key, an unencrypted server, or a full list (65536 keys).
        """
        if self.insecure:
            raise InvalidArgument("key: callers of an unencrypted server have none")
        self.runtime.core.deny(_key("key", key))
        self._denied.append(key)

    def counters(self) -> dict[str, int]:
        """Totals since the start.

        requests, batches, rows, expired, failed, refused, bad_frames, python_entries; repeated: backward calls that
        came again and were not applied again; lent: requests and results that were not copied; denied: handshakes
        of keys that may not connect; refused_connections: those above the limits; and connections: open now.
        """
        return dict(self.runtime.core.counters())

    def __enter__(self) -> TesseractServer:
        self.start(block=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _listen(self) -> None:
        wanted = self.port
        for attempt in range(_PORT_TRIES):
            self.port = self._listen_tcp(wanted)
            try:
                self._hello = self._answer_hello()
                return
            except InvalidArgument:
                self.runtime.core.unlisten()
                if wanted != 0 or attempt + 1 == _PORT_TRIES:
                    raise

    def _listen_tcp(self, port: int) -> int:
        thread = get_net_thread()
        encrypted = not self.insecure
        identity = (self._seed, self.addr, port, encrypted, self.boot_id)
        return int(self.runtime.core.listen(thread, *identity, self._allowed, self._denied))

    def _answer_hello(self) -> Any:
        from learning_at_home import _core

        return _core.HelloResponder(get_net_thread(), self._seed, self.addr, self.port)

    def _declare(self) -> None:
        if self.network is None:
            return
        if not self.network.is_running:
            self.network.start()
        hashes = {uid: backend.schema.hash() for uid, backend in self.experts.items()}
        self.network.declare_experts(
            list(self.experts),
            self.announce,
            self.announce_port,
            schema_hashes=hashes,
            boot_id=self.boot_id,
            update_period=self.update_period,
            grid_size=self.grid_size,
        )

    def _withdraw(self) -> None:
        network = self.network
        if not self._running or network is None or not network.is_running:
            return
        try:
            network.undeclare_experts(timeout=_WITHDRAW_TIMEOUT)
        except LearningAtHomeError as error:  # it was shut down meanwhile; the declaration expires
            logger.info("the declaration could not be withdrawn: %s", error)

    def _serve_until_interrupted(self) -> None:
        with _second_interrupt_ends_process():
            try:
                self._ended.wait()
            except KeyboardInterrupt:
                logger.warning("interrupted: finishing the running batch (interrupt again to leave at once)")
                self.shutdown()

    def _end_with_interpreter(self) -> None:
        if os.getpid() == self._owner:
            with suppress(KeyboardInterrupt):  # the runtime's own exit goes on from there
                self.shutdown()


def _key(argument: str, key: bytes) -> bytes:
    if not isinstance(key, bytes) or len(key) != 32:
        raise InvalidArgument(f"{argument}: expected Ed25519 public keys of 32 bytes, got {key!r}")
    return key


@contextmanager
def _second_interrupt_ends_process() -> Iterator[None]:
    """The first SIGINT raises KeyboardInterrupt; the next has its default action, which needs no GIL."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
