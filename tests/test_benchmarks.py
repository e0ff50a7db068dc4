"""The benchmarks run, in small, and compare and report as they say. No figure is judged: the machine may be busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from benchmarks.all import markdown, modules
from benchmarks.bounds import bound_side, has_zmq
from benchmarks.common import OURS, Row, compare, in_turn, median, number, percentile, table_cells
from benchmarks.gpu.exercise import beyond_int32, differing
from benchmarks.gpu.launches import RANGE, count
from benchmarks.gpu.process import run
from benchmarks.gpu.stages import STAGES
from benchmarks.worker import ROOT, Worker, WorkerError

SECONDS = 200
NOTHING = {"network operations begun by a choice"}  # what a figure of 0 is good news of


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("calls.nop_call", {"1 KiB nop call, p50", "transport ping, p99"}),
        ("calls.transfer", {"16 MiB forward, encrypted", "16 MiB forward, insecure"}),
        ("calls.codecs", {"16 MiB encode, int8", "16 MiB decode, bf16", "16 MiB forward, fp16"}),
        ("dht.idle_traffic", {"other node of 66 nodes, idle for 5 s"}),
        ("dht.lookups_per_core", {"32 nodes: lookups a second of the core", "32 nodes: packets a lookup"}),
        (
            "dht.loopback",
            {"16 nodes: get, p50", "16 nodes: await get, p99", "16 nodes: store, p50", "16 nodes: memory"},
        ),
        ("dht.startup", {"64 nodes: until all are in", "64 nodes: beyond the interpreter"}),
        ("dht.top_experts", {"top-4 of 256, batch 64, warm, p50", "network operations begun by a choice"}),
        ("moe.dmoe_step", {"step, B=256", "step, B=2048", "expert calls a step, B=2048"}),
        ("ops.routed_forward", {"route, dispatch and combine, T=1024 E=256 k=8 H=1024"}),
        ("server.footprint", {"processes", "threads", "threads without torch's", "from construction to ready"}),
    ],
)
def test_quick_benchmark_measures_and_writes_rows(module: str, names: set[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--rounds", "1", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [Row(**row) for row in json.loads(file.read_text())]
    assert names <= {row.name for row in rows}
    assert all((row.ours > 0 or row.name in NOTHING) and row.kind == "real" for row in rows)
    for row in rows:
        if row.name == "processes":
            assert row.ours == 1
        if row.name.startswith("threads"):
            assert row.ours <= 8 or "without" not in row.name
        if row.name.startswith("expert calls"):
            assert row.ours <= 128


def test_all_finds_every_benchmark() -> None:
    assert {
        "benchmarks.calls.codecs",
        "benchmarks.calls.nop_call",
        "benchmarks.calls.transfer",
        "benchmarks.calls.wan",
        "benchmarks.dht.idle_traffic",
        "benchmarks.dht.lookups_per_core",
        "benchmarks.dht.loopback",
        "benchmarks.dht.startup",
        "benchmarks.dht.top_experts",
        "benchmarks.moe.dmoe_step",
        "benchmarks.moe.local_moe",
        "benchmarks.ops.combine",
        "benchmarks.ops.dispatch",
        "benchmarks.ops.quantized",
        "benchmarks.ops.route",
        "benchmarks.ops.route_grid",
        "benchmarks.ops.routed_forward",
        "benchmarks.ops.swiglu",
        "benchmarks.server.fairness",
        "benchmarks.server.ffn_throughput",
        "benchmarks.server.footprint",
    } <= set(modules())
    assert not [module for module in modules() if ".peers." in module or ".gpu." in module]


def test_percentile_is_the_nearest_rank() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0
    assert median([1.0, 9.0, 2.0]) == 2.0


def test_ratio_says_how_many_times_better_ours_is() -> None:
    (slower,) = compare("t", "ms", {OURS: 2.0, "other": 6.0}, bound=1.0)
    assert (slower.peer, slower.peer_value, slower.ratio, slower.bound) == ("other", 6.0, 3.0, 1.0)
    (rate,) = compare("r", "GB/s", {OURS: 2.0, "other": 8.0}, more_is_better=True)
    assert rate.ratio == 0.25
    (alone,) = compare("t", "ms", {OURS: 2.0})
    assert (alone.peer, alone.ratio) == (None, None)


def test_table_puts_the_peers_of_one_figure_in_one_line() -> None:
    rows = [Row("a", "ms", 2.0, "p", 6.0, 3.0, 1.0), Row("a", "ms", 2.0, "q", 1.0, 0.5, 1.0), Row("b", "s", 0.12345)]
    header, lines = table_cells(rows)
    assert header == ["", "ours", "p", "q", "bound"]
    assert lines == [["a, ms", "2", "6 (3×)", "1 (0.5×)", "1"], ["b, s", "0.123", "–", "–", "–"]]
    assert "|a, ms|2|6 (3×)|1 (0.5×)|1|" in markdown(rows)
    assert number(1234.5) == "1,234"
    header, lines = table_cells([Row("a", "ms", 2.0, "p: none here"), Row("a", "ms", 2.0, "q", 3.0, 1.5)])
    assert (header, lines) == (["", "ours", "p: none here", "q"], [["a, ms", "2", "–", "3 (1.5×)"]])


def test_sides_take_turns_and_a_peer_that_fails_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def fail() -> str:
        order.append("peer")
        raise WorkerError("the peer broke")

    def work() -> str:
        order.append(OURS)
        return "done"

    assert in_turn(3, {OURS: work, "peer": fail}) == {OURS: ["done"] * 3}
    assert order == [OURS, "peer", OURS, OURS]
    assert "the peer broke" in capsys.readouterr().out
    with pytest.raises(WorkerError):
        in_turn(1, {OURS: fail})


def test_worker_reports_errors_and_leaves_nothing_behind() -> None:
    with Worker("benchmarks.bounds") as worker:
        with pytest.raises(WorkerError, match="AttributeError"):
            worker.ask("no_such_work")
        assert worker.ask("serve_tcp") > 0
        assert worker.pids() == [worker.process.pid]
    assert worker.process.poll() is not None
    assert worker.pids() == []
    with Worker("benchmarks.no_such_module") as missing, pytest.raises(WorkerError, match=r"ended|no_such_module"):
        missing.ask("anything")


@pytest.mark.parametrize("nbytes", [1024, (2 << 20) + 4096])
def test_bare_loops_answer_as_many_bytes_as_asked_for(nbytes: int) -> None:
    with bound_side().start() as server, bound_side().start() as client:
        port = server.ask("serve_tcp")
        assert len(client.ask("tcp", port=port, count=3, sent=nbytes)) == 3
        assert len(client.ask("tcp", port=port, count=1, sent=nbytes, received=3 * nbytes)) == 1
        if has_zmq():
            for curve in (False, True):
                address = server.ask("serve_zmq", curve=curve)
                assert len(client.ask("zmq", address=address, count=3, nbytes=nbytes)) == 3


def test_gpu_benchmark_says_in_one_line_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks.gpu: this machine lacks ")
    assert "NVIDIA GPU" in line or "torch with CUDA" in line


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"graph"}))  # only CUDA has graphs
def test_gpu_stages_run_in_small_on_the_cpu(stage: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.gpu.stages", stage, "--device", "cpu", "--quick", "--json", str(file)]
    outcome = run(stage, command, SECONDS)
    assert outcome.passed, outcome.tail
    rows = [Row(**row) for row in json.loads(file.read_text())]
    assert rows
    if stage == "launches":
        assert {(row.name, row.ours) for row in rows} >= {("MoE forward, kernels of ours", 0)}  # none on the CPU
    else:
        assert all(row.ours > 0 for row in rows)


def test_stage_that_fails_or_hangs_is_reported(tmp_path: Path) -> None:
    program = "import sys; print('told'); sys.exit(3)"
    assert run("a", [sys.executable, "-c", program], 100).line().startswith("a: FAILED, status 3: told")
    assert run("b", [sys.executable, "-c", "print(1)"], 100).line().startswith("b: passed, 1")
    assert not run("c", [str(tmp_path / "nothing")], 100).passed
    begun = time.monotonic()
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep({SECONDS})'])"
    late = run("d", [sys.executable, "-c", child], 1)  # its child holds the pipe: both must go
    assert late.line().startswith("d: FAILED, not done within 1 s")
    assert time.monotonic() - begun < SECONDS / 2


def test_launches_are_counted_by_kind_and_waits_within_the_range_only() -> None:
    def event(name: str, start: float, device: DeviceType = DeviceType.CPU) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=start + 1))

    whole = event(RANGE, 10)
    whole.time_range.end = 20
    found = count(
        [
            whole,
            event(RANGE, 10, DeviceType.CUDA),
            event("void lah::ops::cuda::(anonymous namespace)::combine_kernel<float, 8>(Args)", 30, DeviceType.CUDA),
            event("nvjet_tst_128x256_64x4", 31, DeviceType.CUDA),
            event("Memcpy DtoH (Device -> Pageable)", 32, DeviceType.CUDA),
            event("cudaLaunchKernel", 12),
            event("cudaStreamSynchronize", 13),
            event("cudaDeviceSynchronize", 40),
        ]
    )
    kinds = (found.ours, found.products, found.others, found.waits)
    assert [kind.total() for kind in kinds] == [1, 1, 1, 1]
    assert "ours 1 (1 × combine_kernel)" in found.line()
    assert "waits 1 (1 × cudaStreamSynchronize)" in found.line()


def test_what_the_sanitizer_runs_agrees_with_itself() -> None:
    assert differing("cpu") == []
    assert beyond_int32("cpu", tokens=512, hidden=64, k=4) == 512 * 4 * 64
