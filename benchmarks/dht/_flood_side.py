"""A process of `benchmarks.dht.flood`: the node under attack, or the attacker."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

from benchmarks.worker import answer_requests
from learning_at_home import TesseractNetwork
from learning_at_home.admission import public_key_of

SOURCES = 16  # addresses of the attacker, 127.0.1.1 and on
KEYS = 4096  # real ones: checking whether a key is one costs the node most
HELLO, SEALED = 2, 1  # csrc/crypto/sealed_packet.hpp
TICK = 0.002


class FloodSide:
    """What `Worker.ask` may ask for."""

    def __init__(self) -> None:
        self.network: TesseractNetwork | None = None
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.sent = 0
        self.began = 0.0
        self.keys: list[bytes] = []

    def serve(self) -> int:
        """Start the node; returns its UDP port."""
        self.network = TesseractNetwork(port=0, host="0.0.0.0", start=True)
        return self.network.port

    def refused(self) -> int:
        """Packets of newcomers that the node did not look at."""
        assert self.network is not None
        return self.network.status()["newcomers_refused"]

    def flood(self, port: int, rate: int) -> None:
        """Begin to send fresh-key packets, every other one a HELLO, `rate` a second."""
        if not self.keys:
            self.keys = [public_key_of(os.urandom(32)) for _ in range(KEYS)]
        self.stopping.clear()
        self.sent = 0
        self.thread = threading.Thread(target=self._flood, args=(port, rate), daemon=True)
        self.thread.start()

    def stop(self) -> float:
        """End the flood; returns the packets a second that were sent."""
        assert self.thread is not None
        self.stopping.set()
        self.thread.join()
        return self.sent / (time.perf_counter() - self.began)

    def _flood(self, port: int, rate: int) -> None:
        sockets = []
        for i in range(SOURCES):
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.bind((f"127.0.1.{i + 1}", 0))
            opened.setblocking(False)
            sockets.append(opened)
        to = ("127.0.0.1", port)
        self.began = time.perf_counter()
        noise = os.urandom(1 << 16)
        while not self.stopping.is_set():
            due = int((time.perf_counter() - self.began) * rate)
            for n in range(self.sent, due):
                kind = HELLO if n % 2 else SEALED
                at = (n * 131) % (len(noise) - 128)
                packet = bytes((1, kind)) + self.keys[n % KEYS] + noise[at : at + 88]
                with contextlib.suppress(BlockingIOError):
                    sockets[n % SOURCES].sendto(packet, to)
            self.sent = max(self.sent, due)
            time.sleep(TICK)
        for opened in sockets:
            opened.close()

    def close(self) -> None:
        """End everything."""
        self.stopping.set()
        if self.network is not None:
            self.network.shutdown()


if __name__ == "__main__":
    answer_requests(FloodSide())
