"""What the tests of the emulator run on its nodes: plain UDP and TCP, with nothing of this package."""

from __future__ import annotations

import json
import socket
import sys
import time

PORT = 4000
DATAGRAM = 200


def listen(address: str) -> None:
    """Echo datagrams; count what comes over TCP and answer how much, once the sender has ended."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, PORT))
    tcp = socket.create_server((address, PORT))
    print("READY", flush=True)
    udp.setblocking(False)
    tcp.setblocking(False)
    import select

    while True:
        ready = select.select([udp, tcp], [], [])[0]
        if udp in ready:
            data, sender = udp.recvfrom(65536)
            udp.sendto(data, sender)
        if tcp in ready:
            count(tcp.accept()[0])


def count(connection: socket.socket) -> None:
    """Answer the seconds between the first byte and the last, and how many there were between."""
    connection.setblocking(True)
    store = bytearray(1 << 20)
    first = connection.recv_into(store)
    begun, total = time.monotonic(), 0
    while first and (got := connection.recv_into(store)):
        total += got
    connection.sendall(json.dumps([total, time.monotonic() - begun]).encode())
    connection.close()


def round_trips(address: str, how_many: int, every: float) -> list[float | None]:
    """Milliseconds of datagrams sent at an even pace, None for those that were lost."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((address, PORT))
    sent: list[float] = []
    trips: list[float | None] = [None] * how_many
    end = time.monotonic() + every * how_many + 2.0
    while time.monotonic() < end and (len(sent) < how_many or None in trips):
        now = time.monotonic()
        if len(sent) < how_many and (not sent or now >= sent[-1] + every):
            sent.append(now)
            udp.send(len(sent).to_bytes(4, "big") + bytes(DATAGRAM - 4))
        udp.settimeout(max(1e-4, min(every, end - now)))
        try:
            i = int.from_bytes(udp.recv(65536)[:4], "big") - 1
        except TimeoutError:
            continue
        trips[i] = 1e3 * (time.monotonic() - sent[i])
    return trips


def bulk(address: str, seconds: float) -> float:
    """Mbit/s of one TCP stream, as the receiver saw it, its start included."""
    connection = socket.create_connection((address, PORT))
    block, end = bytes(1 << 20), time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)
    total, took = json.loads(connection.makefile().read())
    return total * 8 / took / 1e6


if __name__ == "__main__":
    what, address, *rest = sys.argv[1:]
    if what == "listen":
        listen(address)
    elif what == "round_trips":
        print(json.dumps(round_trips(address, int(rest[0]), float(rest[1]))))
    else:
        print(json.dumps(bulk(address, float(rest[0]))))
