"""Expert calls from Python: connections, the calls themselves, and what is known of experts and peers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from learning_at_home import errors
from learning_at_home._net_thread import get_net_thread
from learning_at_home.client.codec import AUTO, MEASURED_BYTES, LinkSpeed
from learning_at_home.schema import DTYPE_CODES, ExpertSchema

logger = logging.getLogger(__name__)

FORWARD, BACKWARD, INFO, STATE = 1, 2, 3, 4  # csrc/rpc/message.hpp: Method
_PHASES = {FORWARD: "forward", BACKWARD: "backward", INFO: "info", STATE: "state"}

DEFAULT_TIMEOUT = 30.0  # seconds that a call may take before it is known how long such calls take, ...
ASSUMED_RATE = 1e6  # ... and the bytes per second that its tensors are given on top

_lock = threading.Lock()
_current: dict[bytes | None, tuple[int, weakref.ref[Transport]]] = {}


@dataclass(frozen=True)
class ExpertAddress:
    """Where an expert is served: uid, connection, and the text that names its server in errors.

    replicas: connections of other servers that declare the same uid with the same schema, best first.
    """

    uid: str
    peer: int
    server: str
    replicas: tuple[int, ...] = ()


@dataclass
class ExpertCall:
    """One call. Inputs and outputs are contiguous CPU tensors; outputs are filled in place.

    priority: 0 to 255; a server computes higher ones first.
    codecs: names of `client.codec` for the inputs in order, "raw" for those not named. result_codec: for the outputs.
    """

    address: ExpertAddress
    method: int
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]
    training: bool = True
    priority: int = 0
    codecs: Sequence[str] = ()
    result_codec: str = "raw"

    @property
    def context(self) -> str:
        """Phase, uid and peer, as errors name them."""
        return self.context_at(self.address.server)

    def context_at(self, server: str) -> str:
        """The same, when another holder of the expert was asked in the end."""
        return f"{_PHASES[self.method]} of expert '{self.address.uid}' on {server}"


@dataclass
class CallOutcome:
    """How a call ended. Times in seconds.

    queue_time, service_time, batch_rows: of the batch it was computed in, as its server says.
    wait_time: what a request that came then would wait, as its server says.
    elapsed: from start to end, as seen here.
    retried: how often it was sent again. hedged: whether a replica was asked too.
    wire_bytes: of the tensors of request and result, as they travelled.
    peer, server: the connection that answered, or failed last, and the text that names it.
    """

    error: errors.LearningAtHomeError | None
    queue_time: float
    service_time: float
    batch_rows: int
    description: bytes
    wait_time: float = 0.0
    elapsed: float = 0.0
    retried: int = 0
    hedged: bool = False
    wire_bytes: int = 0
    peer: int = 0
    server: str = ""

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Quorum:
    """When to stop waiting: `timeout_after_k_min` seconds after each token has `k_min` answers or cannot get them.

    source: int32 [rows], t * k + j of each row of the calls laid end to end. row_offsets: one more than calls.
    """

    k_min: int
    timeout_after_k_min: float
    source: torch.Tensor
    k: int
    tokens: int
    row_offsets: Sequence[int]


class Transport:
    """All connections of one caller to expert servers. Shared by its modules; get it from `get_transport()`.

    identity: the 32-byte seed of the key that servers know this caller by; None makes a new one.
    """

    def __init__(self, identity: bytes | None = None) -> None:
        from learning_at_home import _core

        self._core = _core.ClientCore(get_net_thread(), identity or os.urandom(32))
        self._schemas: dict[tuple[int, str], ExpertSchema] = {}
        self._names: dict[int, str] = {}
        self._keys: dict[tuple[str, int], bytes] = {}
        self._links: dict[int, LinkSpeed] = {}
        self._lent: list[tuple[Any, Any]] = []  # tensors that frames still point into

    def __deepcopy__(self, memo: dict[int, Any]) -> Transport:
        return self  # a connection cannot be copied, and need not be

    def __reduce__(self) -> Any:
        raise TypeError("a Transport holds open connections and cannot be pickled; save the module's state_dict")

    def connect(self, host: str, port: int, key: bytes | None = None, insecure: bool = False) -> int:
        """Return the connection to a server, made in the background.

        Args:
            host, port: its TCP address; a name is resolved here.
            key: the server's 32-byte public key. None asks the server for it (trust on first use): a signed
                answer over UDP on the same port number.
            insecure: connect without encryption, to servers that listen so.

        Raises:
            InvalidArgument: the host does not resolve. PeerUnreachable: no answer to the question for the key.
        """
        ip = resolve(host)
        if key is None and not insecure:
            key = self._trusted_key(ip, port)
        peer = int(self._core.connect(ip, port, key))
        self._names[peer] = f"server {host}:{port}"
        return peer

    def _trusted_key(self, ip: str, port: int) -> bytes:
        """The key this address once answered with. It is asked again only when that server is down."""
        known = self._keys.get((ip, port))
        if known is not None and self._core.connect(ip, port, known) not in self.down():
            return known
        try:
            key = self._ask_key(ip, port)
        except errors.PeerUnreachable:
            if known is None:
                raise
            return known  # the call itself will say what is wrong
        if known is not None and key != known:
            logger.warning("server %s:%d has another key than before: %s", ip, port, key.hex())
        elif known is None:
            logger.info("server %s:%d is trusted on first use with key %s", ip, port, key.hex())
        self._keys[ip, port] = key
        return key

    def _ask_key(self, ip: str, port: int, timeout: float = 5.0) -> bytes:
        from learning_at_home import _core

        key = _core.hello(get_net_thread(), ip, port, timeout)
        if key is None:
            raise errors.PeerUnreachable(f"server {ip}:{port}: no answer on UDP port {port} within {timeout} s")
        return bytes(key)

    def schema(self, address: ExpertAddress, timeout: float | None) -> ExpertSchema:
        """Ask a server once what an expert takes and gives. Raises the typed error of the call."""
        known = self._schemas.get((address.peer, address.uid))
        if known is None:
            call = ExpertCall(address, INFO, (), ())
            (outcome,) = self.call_many([call], timeout)
            if outcome.error is not None:
                raise outcome.error
            try:
                known = ExpertSchema.from_json(outcome.description.rstrip(b"\0"))
            except ValueError as error:
                raise errors.ProtocolError(f"{call.context}: {error}") from error
            self._schemas[address.peer, address.uid] = known
        return known

    def call_many(
        self, calls: Sequence[ExpertCall], timeout: float | None, quorum: Quorum | None = None
    ) -> list[CallOutcome]:
        """Run calls side by side; returns by `timeout` (s) with one outcome each, in order. Never raises for them.

        Without a timeout every call has `DEFAULT_TIMEOUT` and the time its bytes need at `ASSUMED_RATE`; once calls of
        its kind (server, expert, method, size) were measured, 5 s and four times the longest of the last 64, if that
        is less. Forward calls may be retried at an expert's replicas, or hedged there after the 95th percentile.

        Outputs of failed calls hold garbage. After it returns no output is written any more.
        """
        self._lent = [(lease, kept) for lease, kept in self._lent if lease.busy]
        links = [self.link(call.address.peer) for call in calls]
        specs = [
            (
                _holders(call),
                call.address.uid,
                call.method,
                call.training,
                call.priority,
                _specs(call.inputs),
                _specs(call.outputs),
                [link.code(name) for name in call.codecs],
                link.code(call.result_codec),
            )
            for call, link in zip(calls, links, strict=True)
        ]
        adaptive = timeout is None
        if timeout is None:
            timeout = DEFAULT_TIMEOUT + max((_call_bytes(call) for call in calls), default=0) / ASSUMED_RATE
        extra: tuple[Any, ...] = ()
        if quorum is not None:
            extra = (
                quorum.k_min,
                quorum.timeout_after_k_min,
                quorum.source.data_ptr(),
                quorum.k,
                quorum.tokens,
                list(quorum.row_offsets),
            )
        outcomes, lease = self._core.call_many(specs, timeout, adaptive, *extra)
        if lease.busy:
            self._lent.append((lease, [call.inputs for call in calls]))
        done = [self._outcome(call, raw) for call, raw in zip(calls, outcomes, strict=True)]
        if any(AUTO in (*call.codecs, call.result_codec) for call in calls):
            self._measure(done)
        return done

    def link(self, peer: int) -> LinkSpeed:
        """What is known of the link to a server. It is measured by the calls that leave their codec to it ("auto")."""
        known = self._links.get(peer)
        return self._links.setdefault(peer, LinkSpeed()) if known is None else known

    def _measure(self, outcomes: Sequence[CallOutcome]) -> None:
        # Calls to one server share its link: all their bytes count, over the longest time that one of them travelled.
        by_peer: dict[int, list[CallOutcome]] = {}
        for outcome in outcomes:
            if outcome.ok and not outcome.retried and not outcome.hedged:
                by_peer.setdefault(outcome.peer, []).append(outcome)
        for peer, done in by_peer.items():
            nbytes = sum(outcome.wire_bytes for outcome in done)
            round_trip = self.round_trip(peer) if nbytes >= MEASURED_BYTES else None
            if round_trip is not None:
                travelled = max(outcome.elapsed - outcome.queue_time - outcome.service_time for outcome in done)
                self.link(peer).add(nbytes, travelled - round_trip)

    def round_trip(self, peer: int) -> float | None:
        """Seconds of the quickest ping so far, None before the first answer. Sends another one, and does not wait."""
        return self._core.round_trip(peer)

    def answered_by(self, address: ExpertAddress, outcome: CallOutcome) -> ExpertAddress:
        """The one holder of an expert that answered a forward call: its backward call goes there."""
        if outcome.peer == address.peer:
            return address
        return ExpertAddress(address.uid, outcome.peer, outcome.server)

    def counters(self) -> dict[str, int]:
        """Totals of this process: calls, retries, hedges, hedges_won, over_budget (retries and hedges not made)."""
        return dict(self._core.counters())

    def _server_name(self, peer: int, default: str) -> str:
        return self._names.get(peer, default)

    def _outcome(self, call: ExpertCall, raw: tuple[Any, ...]) -> CallOutcome:
        code, message, detail, retry_after_ms, queue_us, service_us, batch_rows, description, *rest = raw
        wait_us, elapsed, peer, retried, hedged, wire_bytes = rest
        error = None
        server = self._server_name(peer, call.address.server)
        if code != errors.OK:
            context = call.context_at(server)
            error = errors.make_error(code, message, detail, retry_after_ms, context)
        return CallOutcome(
            error,
            queue_us / 1e6,
            service_us / 1e6,
            batch_rows,
            description,
            wait_us / 1e6,
            elapsed,
            retried,
            hedged,
            wire_bytes,
            peer,
            server,
        )

    def ping(self, peer: int, timeout: float) -> float | None:
        """Round trip in seconds of a ping that the server's network thread answers; None if there was no answer."""
        return self._core.ping(peer, timeout)

    def down(self) -> frozenset[int]:
        """Connections whose servers owe an answer and are silent. They leave the set as soon as they answer."""
        return frozenset(self._core.down())


def get_transport(identity: bytes | None = None) -> Transport:
    """Return this process's transport, making it if there is none. Hold the result to keep its connections.

    Each `identity` (a 32-byte seed) has its own; without one, calls are made under a key that no server knows.
    """
    with _lock:
        pid, known = _current.get(identity, (0, None))
        transport = known() if known is not None and pid == os.getpid() else None
        if transport is None:
            for old in [key for key, (_, reference) in _current.items() if reference() is None]:
                del _current[old]
            transport = Transport(identity)
            _current[identity] = (os.getpid(), weakref.ref(transport))
        return transport


def resolve(host: str) -> str:
    """Return the first IP address of a host name. Raises InvalidArgument naming the host."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise errors.InvalidArgument(f"host: cannot resolve {host!r}: {error}") from error


def _specs(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tuple(tensor.shape)) for tensor in tensors]


def _holders(call: ExpertCall) -> list[int]:
    # A backward call belongs where its forward call was answered.
    return [call.address.peer, *(() if call.method == BACKWARD else call.address.replicas)]


def _call_bytes(call: ExpertCall) -> int:
    return sum(tensor.nbytes for tensor in (*call.inputs, *call.outputs))
