"""Servers and trainers for hours, while servers die and come back: what do memory and descriptors do?

``cd tests && python -m chaos.soak --minutes 45`` prints a table and exits with 1 if a process leaks. Four servers, of
which one is killed and started again every 20 s; sixteen trainer threads in one process, each with a gate of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time

import torch
from conftest import ExpertServer
from expert_server import HIDDEN

import learning_at_home as lib
from chaos.process_faults import descriptors, rss
from learning_at_home import errors

SERVERS, CLIENTS, EXPERTS = 4, 16, 4  # experts of each server
CHURN = 20.0  # seconds between kills
PAUSE = 0.25  # seconds between a trainer's steps
SAMPLE = 5.0
WARM_UP = 12.0  # minutes until every table has its final size (answers are remembered for five)
SLOPE = 1.0  # MB an hour, after the warm-up
GROWTH = 64.0  # MB, of a run that is too short to tell a slope
SPARE_DESCRIPTORS = 40  # connections to servers that come and go


def trainer(
    network: lib.TesseractNetwork, seed: int, stop: threading.Event, steps: list[int], failed: list[int]
) -> None:
    torch.manual_seed(seed)
    gate = lib.GatingFunction(
        in_features=HIDDEN, grid_size=[SERVERS, EXPERTS], network=network, k_best=3, k_min=1, uid_prefix="e"
    )
    while not stop.wait(PAUSE * random.uniform(0.5, 1.5)):
        x = torch.randn(8, HIDDEN).clamp(max=0.0).requires_grad_()
        try:
            gate(x).sum().backward()
        except errors.LearningAtHomeError:
            failed[seed] += 1
        steps[seed] += 1


def slope(samples: list[tuple[float, int, int]]) -> float:
    """MB an hour, by least squares over (seconds, bytes, descriptors)."""
    count = len(samples)
    if count < 3:
        return 0.0
    mean_t = sum(t for t, _, _ in samples) / count
    mean_b = sum(b for _, b, _ in samples) / count
    spread = sum((t - mean_t) ** 2 for t, _, _ in samples)
    return sum((t - mean_t) * (b - mean_b) for t, b, _ in samples) / spread * 3600 / 1e6


def report(name: str, samples: list[tuple[float, int, int]], warm_up: float) -> bool:
    """Print a line; whether the process is in order."""
    warm = [sample for sample in samples if sample[0] >= warm_up] or samples[-1:]
    growth = (warm[-1][1] - warm[0][1]) / 1e6
    gained = warm[-1][2] - warm[0][2]
    per_hour = slope(warm)
    long_enough = warm[-1][0] - warm[0][0] >= 20 * 60
    fine = (per_hour < SLOPE if long_enough else growth < GROWTH) and gained <= SPARE_DESCRIPTORS
    print(
        f"{name:<10} {warm[-1][1] / 1e6:8.1f} MB {growth:+8.2f} MB {per_hour:+9.2f} MB/h"
        f" {warm[-1][2]:5d} fds {gained:+4d}  {'ok' if fine else 'LEAKS'}",
        flush=True,
    )
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45.0)
    minutes = parser.parse_args().minutes
    torch.set_num_threads(1)
    processes: list[ExpertServer] = []
    network = lib.TesseractNetwork(port=0, host="127.0.0.1", start=True)

    def start(number: int) -> ExpertServer:
        uids = [f"e.{number}.{expert}=nop" for expert in range(EXPERTS)]
        processes.append(ExpertServer("--network", str(network.port), *uids))
        return processes[-1]

    servers = [start(number) for number in range(SERVERS)]
    for server in servers:
        server.wait_line("READY")
    stop, steps, failed = threading.Event(), [0] * CLIENTS, [0] * CLIENTS
    trainers = [
        threading.Thread(target=trainer, args=(network, seed, stop, steps, failed), daemon=True)
        for seed in range(CLIENTS)
    ]
    for thread in trainers:
        thread.start()
    samples: dict[str, list[tuple[float, int, int]]] = {"trainers": []}
    begin, last_kill, kills = time.monotonic(), time.monotonic(), 0
    while (now := time.monotonic()) - begin < minutes * 60:
        pids = {"trainers": os.getpid(), **{f"server {i}": server.pid for i, server in enumerate(servers[1:], 1)}}
        for name, pid in pids.items():
            samples.setdefault(name, []).append((now - begin, rss(pid), descriptors(pid)))
        if now - last_kill >= CHURN:
            servers[0].signal(signal.SIGKILL)
            servers[0].end()
            processes.remove(servers[0])
            servers[0], last_kill, kills = start(0), now, kills + 1
        time.sleep(SAMPLE)
    stop.set()
    for thread in trainers:
        thread.join(60)
    print(f"{minutes:g} min, {kills} kills, {sum(steps)} steps, {sum(failed)} of them raised")
    warm_up = min(WARM_UP, minutes / 3) * 60
    fine = [report(name, taken, warm_up) for name, taken in samples.items()]
    stuck = sum(thread.is_alive() for thread in trainers)
    for process in processes:
        process.end()
    network.shutdown()
    if stuck:
        print(f"{stuck} trainers hang")
    return 0 if all(fine) and not stuck and sum(steps) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
