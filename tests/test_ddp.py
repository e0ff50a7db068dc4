"""Data-parallel trainers around a gate: a rank without experts still gives every parameter its gradient."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Process
from expert_server import backend

import learning_at_home as lib

Spawn = Callable[..., Process]

RANK = """
import os, sys, torch
import learning_at_home as lib
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
rank, store, port, prefix = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
network = lib.TesseractNetwork(("127.0.0.1", port), port=0, host="127.0.0.1", start=True)
gate = lib.GatingFunction(
    in_features=4, grid_size=[2], network=network, k_best=2, uid_prefix=prefix, forward_timeout=10
)
assert prefix == "none" or gate.wait_for_experts(2, timeout=60)
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(4, 4), gate, torch.nn.Linear(4, 1)))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    opt.zero_grad()
    model(torch.randn(3, 4)).sum().backward()
    assert gate.last_stats.failed == 0
    assert gate.last_stats.forward_calls == (0 if prefix == "none" else 2)
    assert all(parameter.grad is not None for parameter in model.parameters())
    opt.step()
weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
both = [torch.empty_like(weights) for _ in range(2)]
dist.all_gather(both, weights)
assert torch.equal(*both) and weights.isfinite().all()
dist.destroy_process_group()
print("STEPPED", flush=True)
os._exit(0)  # gloo's worker threads now and then abort an interpreter's exit under DDP
"""


def test_ddp_steps_with_no_expert_alive_on_one_rank(
    network: lib.TesseractNetwork, spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    with lib.TesseractServer(network, {uid: backend(uid, "nop") for uid in ("s.0", "s.1")}, port=0):
        ranks = [
            spawn("-c", RANK, str(rank), str(tmp_path / "store"), str(network.port), prefix)
            for rank, prefix in enumerate(("s", "none"))
        ]
        for rank in ranks:
            rank.wait_line("STEPPED", timeout=100)
            assert rank.wait() == 0, rank.stderr
