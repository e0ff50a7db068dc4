"""gRPC with one unary method that returns its bytes, as a server or as a client of one, in an environment of its own.

Bytes only: what it takes to make messages of tensors, and tensors of messages, is not counted.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.worker import answer_requests

_NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Grpc:
    """Each method is a piece of work; times are in seconds."""

    def serve(self) -> int:
        """Listen, unencrypted; returns the port."""
        import grpc

        echo = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
        self.server = grpc.server(ThreadPoolExecutor(2), options=_NO_LIMIT)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lah", {"echo": echo}),))
        port = int(self.server.add_insecure_port("127.0.0.1:0"))
        self.server.start()
        return port

    def exchanges(self, port: int, count: int, nbytes: int) -> list[float]:
        """Seconds of each exchange of `nbytes` each way."""
        import grpc

        if not hasattr(self, "call"):
            self.channel: Any = grpc.insecure_channel(f"127.0.0.1:{port}", options=_NO_LIMIT)
            self.call = self.channel.unary_unary("/lah/echo")
        request = bytes(nbytes)
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            answer = self.call(request)
            times.append(time.perf_counter() - begun)
        assert len(answer) == nbytes
        return times

    def close(self) -> None:
        """Threads end with the process."""


if __name__ == "__main__":
    answer_requests(Grpc())
