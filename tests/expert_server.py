"""A server of experts that misbehave on demand, run as a process of its own by the tests.

Prints ``READY HOST TCP-PORT UDP-PORT`` when it is up. Ends when stdin is closed, with
--block also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import learning_at_home as lib

HIDDEN = 4


class Sleeper(nn.Module):
    """Returns its input, after as many seconds as its largest value; BUSY and DONE lines tell when."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        seconds = x.max().item()
        if seconds > 0.0:
            print(f"BUSY {time.monotonic()}", flush=True)
            time.sleep(seconds)
            print(f"DONE {time.monotonic()}", flush=True)
        return x * self.scale


class Nop(nn.Module):
    """Returns its input at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class GilHolder(nn.Module):
    """Sleeps a second without letting go of the GIL; returns when that began and ended (time.monotonic())."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.usleep = ctypes.PyDLL(None).usleep

    def forward(self, x: Tensor) -> Tensor:
        begin = time.monotonic()
        if x.max().item() > 0.0:  # not while the schema is found out
            self.usleep(1_000_000)
        return torch.tensor([begin, time.monotonic()], dtype=torch.float64).expand(len(x), 2)


EXPERTS = {"sleeper": Sleeper, "nop": Nop, "gil": GilHolder}


def backend(uid: str, kind: str, **pool: object) -> lib.ExpertBackend:
    """An expert on rows of HIDDEN values that does not learn."""
    module = EXPERTS[kind]()
    opt = torch.optim.SGD(module.parameters(), lr=0.0)
    return lib.ExpertBackend(uid, module, opt, args_schema=(lib.BatchTensorProto(HIDDEN),), **pool)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", type=int, help="UDP port of the node to join; without it, no network")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--identity", type=bytes.fromhex, help="the node's seed; random without it")
    parser.add_argument("--insecure", action="store_true", help="listen without encryption")
    parser.add_argument("--block", choices=["start", "constructor", "with"], help="how to serve")
    parser.add_argument("experts", nargs="+", metavar="UID=KIND")
    options = parser.parse_args()
    threading.Thread(target=exit_with_stdin, daemon=True).start()
    torch.set_num_threads(1)
    node = None
    if options.network:
        node = lib.TesseractNetwork(
            ("127.0.0.1", options.network), port=0, host="127.0.0.1", start=True, identity=options.identity
        )
    backends = {uid: backend(uid, kind) for uid, _, kind in (pair.partition("=") for pair in options.experts)}

    def say_ready(port: int) -> None:
        print(f"READY 127.0.0.1 {port} {node.port if node else 0}", flush=True)

    if options.block == "constructor":
        when_blocked(lambda: say_ready(options.port))
        lib.TesseractServer(node, backends, port=options.port, start=True)
        print("RETURNED", flush=True)
        return
    server = lib.TesseractServer(node, backends, port=options.port, insecure=options.insecure)
    if options.block == "with":
        with server:
            say_ready(server.port)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                raise
    if options.block == "start":
        when_blocked(lambda: say_ready(server.port))
        server.start()
        print("RETURNED", flush=True)
        return
    server.start(block=False)
    say_ready(server.port)
    threading.Event().wait()


def when_blocked(action: Callable[[], None]) -> None:
    """Do something once the main thread waits for the interrupt, not earlier."""

    def watch() -> None:
        main = threading.main_thread().ident
        while True:
            names, frame = [], sys._current_frames().get(main or 0)
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            if "_serve_until_interrupted" in names and "wait" in names:
                return action()
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()


def exit_with_stdin() -> None:
    """However the test ends, this process ends with it."""
    while os.read(0, 1):  # sys.stdin's lock must be free when the interpreter exits
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
