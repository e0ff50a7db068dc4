"""Servers that die by SIGKILL in the middle of their work, again and again."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import ExpertServer, InBackground, Process
from expert_server import HIDDEN

import learning_at_home as lib
from chaos.servers import GRACE, Caller, Ended, NopServer, check_applied_once, check_ended, log_of
from learning_at_home.client.transport import Transport

LANES = 8  # servers that die side by side
DEADLINE = 1.0  # seconds
SURVIVED = 2.0  # seconds in which a step with the survivors succeeds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def kill_again_and_again(kills: int, folder: Path, seed: int, ended: list[Ended], acknowledged: list[int]) -> None:
    """One lane: a server with one key and port, killed while it computes and started again at once."""
    chance = random.Random(seed)
    identity, port = os.urandom(32), free_port()
    transport = Transport()
    peer = transport.connect("127.0.0.1", port, lib.TesseractNetwork(identity=identity).public_key)
    options = ("--port", str(port), "--seed", identity.hex(), "--batch-ms", "3")
    caller = Caller(transport, peer, DEADLINE).start()
    try:
        for number in range(kills):
            log = log_of(folder, number)
            server = NopServer(*options, "--log", str(log))
            try:
                server.wait_line("READY")
                caller.wait_answer(60)  # mid-batch from here on
                time.sleep(chance.uniform(0, 0.02))
            finally:
                server.signal(signal.SIGKILL)
                server.end()
    finally:
        caller.stop()
    ended.extend(caller.ended)
    acknowledged.append(check_applied_once(caller.ended, [log_of(folder, number) for number in range(kills)]))


@pytest.mark.timeout(900)
def test_torch_free_servers_killed_mid_batch(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--kills")
    ended: list[Ended] = []
    acknowledged: list[int] = []
    begin = time.monotonic()
    lanes = []
    for lane in range(min(LANES, kills)):
        folder = tmp_path / str(lane)
        folder.mkdir()
        share = kills // LANES + (lane < kills % LANES)
        lanes.append(InBackground(lambda f=folder, n=share, s=lane: kill_again_and_again(n, f, s, ended, acknowledged)))
    for lane in lanes:
        lane.result(800)
    check_ended(ended, DEADLINE)
    failed = sum(end.error is not None for end in ended)
    slowest = max(end.seconds for end in ended)
    print(
        f"{kills} kills in {time.monotonic() - begin:.0f} s: {len(ended)} calls, {failed} failed,"
        f" {sum(acknowledged)} backward calls acknowledged; slowest {slowest:.2f} s of {DEADLINE} s"
    )
    assert len(acknowledged) == min(LANES, kills)
    assert sum(acknowledged) >= kills


def step(gate: lib.GatingFunction) -> None:
    x = torch.full((2, HIDDEN), -1.0).requires_grad_()
    gate.zero_grad()
    gate(x).sum().backward()


@pytest.mark.timeout(900)
def test_real_servers_killed_in_a_step(request: pytest.FixtureRequest, processes: list[Process]) -> None:
    kills = max(1, request.config.getoption("--kills") // 40)
    with ExitStack() as stack:
        network = stack.enter_context(lib.TesseractNetwork(port=0, host="127.0.0.1"))

        def start(number: int) -> ExpertServer:
            process = ExpertServer("--network", str(network.port), f"e.{number}=nop")
            processes.append(process)
            return process

        living = {number: start(number) for number in (0, 1)}
        spare = start(2)
        waits = {"k_min": 1, "backward_k_min": 1, "timeout_after_k_min": 0.5}
        gate = lib.GatingFunction(
            in_features=HIDDEN, grid_size=[kills + 3], network=network, k_best=2, uid_prefix="e", **waits
        )
        assert gate.wait_for_experts(3, timeout=60)
        longest = 0.0
        for victim in range(kills):
            step(gate)
            stop = threading.Event()
            running = InBackground(lambda s=stop: [step(gate) for _ in iter(s.is_set, True)])
            time.sleep(0.1)
            process = living.pop(victim)
            process.signal(signal.SIGKILL)
            killed = time.monotonic()
            stop.set()
            running.result(60)
            step(gate)
            assert gate.last_stats.forward_calls - gate.last_stats.forward_failed >= 1, gate.last_stats
            longest = max(longest, time.monotonic() - killed)
            living[victim + 2], spare = spare, start(victim + 3)
            spare.wait_line("READY")
            assert gate.wait_for_experts(2, timeout=60)
        print(f"{kills} kills of real servers: a step succeeded on survivors within {longest:.2f} s")
        assert longest <= SURVIVED + GRACE
