"""What this machine allows: bare loops between two Python processes, over TCP and, where pyzmq is there, ZeroMQ."""

from __future__ import annotations

import importlib.util
import socket
import struct
import threading
import time
from typing import Any

from benchmarks.common import Side
from benchmarks.worker import answer_requests

CHUNK = 1 << 20
_HEADER = struct.Struct("!QQ")  # bytes to read, bytes to answer


def bound_side() -> Side:
    """Bare loops as one more side."""
    import sys

    return Side("bound", "benchmarks.bounds", sys.executable)


def has_zmq() -> bool:
    """Whether pyzmq is installed: the optional extra `bench`."""
    return importlib.util.find_spec("zmq") is not None


class Bounds:
    """Server: `serve_tcp`, `serve_zmq`. Client: `tcp`, `zmq`. All answer as many bytes as asked for."""

    def __init__(self) -> None:
        self.connections: dict[int, Any] = {}
        self.streams: list[socket.socket] = []

    def serve_tcp(self, host: str = "127.0.0.1") -> int:
        """Listen; returns the port."""
        listener = socket.create_server((host, 0))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def tcp(self, port: int, count: int, sent: int, received: int | None = None) -> list[float]:
        """Seconds of each exchange: send `sent` bytes, receive `received` (as many by default), in chunks."""
        received = sent if received is None else received
        if port not in self.connections:
            self.connections[port] = socket.create_connection(("127.0.0.1", port))
            self.connections[port].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self.connections[port]
        out, into = memoryview(bytearray(sent)), memoryview(bytearray(received))
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            _send(connection, out, _HEADER.pack(sent, received))
            _receive(connection, into)
            times.append(time.perf_counter() - begun)
        return times

    def tcp_streams(self, host: str, port: int, sent: int, streams: int) -> float:
        """Seconds until every one of `streams` connections has sent `sent` bytes and received as many."""
        if len(self.streams) != streams:
            self.streams = [socket.create_connection((host, port)) for _ in range(streams)]
        out = memoryview(bytearray(sent))

        def exchange(connection: socket.socket) -> None:
            _send(connection, out, _HEADER.pack(sent, sent))
            _receive(connection, memoryview(bytearray(sent)))

        threads = [threading.Thread(target=exchange, args=(connection,)) for connection in self.streams]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def serve_zmq(self, curve: bool) -> dict[str, Any]:
        """Bind a ROUTER; returns where. With curve its key, too."""
        import zmq

        public, secret = zmq.curve_keypair()
        socket_ = _zmq_socket(zmq.ROUTER)
        socket_.router_mandatory = True  # blocks where a ROUTER would else drop what its peer is slow to take
        if curve:
            socket_.curve_server, socket_.curve_secretkey = True, secret
        port = socket_.bind_to_random_port("tcp://127.0.0.1")
        threading.Thread(target=_echo_zmq, args=(socket_,), daemon=True).start()
        return {"port": port, "key": public.decode() if curve else None}

    def zmq(self, address: dict[str, Any], count: int, nbytes: int) -> list[float]:
        """Seconds of each exchange of `nbytes` each way, in frames of at most 1 MiB."""
        import zmq

        port = address["port"]
        if port not in self.connections:
            connection = _zmq_socket(zmq.DEALER)
            if address["key"] is not None:
                connection.curve_serverkey = address["key"].encode()
                connection.curve_publickey, connection.curve_secretkey = zmq.curve_keypair()
            connection.connect(f"tcp://127.0.0.1:{port}")
            self.connections[port] = connection
        connection = self.connections[port]
        out, into = memoryview(bytearray(nbytes)), memoryview(bytearray(nbytes))
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            connection.send(str(nbytes).encode())
            for at in range(0, nbytes, CHUNK):
                connection.send(out[at : at + CHUNK], copy=nbytes < CHUNK)
            for at in range(0, nbytes, CHUNK):
                part = connection.recv(copy=False)
                into[at : at + len(part.buffer)] = part.buffer
            times.append(time.perf_counter() - begun)
        return times

    def close(self) -> None:
        """Threads and sockets end with the process."""

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_echo_tcp, args=(connection,), daemon=True).start()


def _echo_tcp(connection: socket.socket) -> None:
    header, store = memoryview(bytearray(_HEADER.size)), memoryview(bytearray(0))
    while True:
        _receive(connection, header)
        incoming, outgoing = _HEADER.unpack(header)
        if len(store) < max(incoming, outgoing):
            store = memoryview(bytearray(max(incoming, outgoing)))
        _receive(connection, store[:incoming])
        _send(connection, store[:outgoing])


def _send(connection: socket.socket, data: memoryview, header: bytes = b"") -> None:
    if len(data) < CHUNK:
        connection.sendall(header + bytes(data))
        return
    connection.sendall(header)
    for at in range(0, len(data), CHUNK):
        connection.sendall(data[at : at + CHUNK])


def _receive(connection: socket.socket, into: memoryview) -> None:
    at = 0
    while at < len(into):
        got = connection.recv_into(into[at : at + CHUNK])
        if got == 0:
            raise SystemExit
        at += got


def _zmq_socket(kind: int) -> Any:
    import zmq

    socket_ = zmq.Context.instance().socket(kind)
    socket_.sndhwm = socket_.rcvhwm = 8
    socket_.linger = 0
    return socket_


def _echo_zmq(socket_: Any) -> None:
    # Stores the whole request, then answers: as a server must that computes on it.
    while True:
        route, size = socket_.recv_multipart()
        nbytes = int(size)
        store = memoryview(bytearray(nbytes))
        for at in range(0, nbytes, CHUNK):
            _, part = socket_.recv_multipart(copy=False)
            store[at : at + len(part.buffer)] = part.buffer
        for at in range(0, nbytes, CHUNK):
            socket_.send(route, flags=2)  # SNDMORE
            socket_.send(store[at : at + CHUNK], copy=nbytes < CHUNK)


if __name__ == "__main__":
    answer_requests(Bounds())
