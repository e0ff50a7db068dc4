"""The benchmarks run, in small, and compare and report as they say. No figure is judged: the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.all import markdown, modules
from benchmarks.bounds import bound_side, has_zmq
from benchmarks.common import OURS, Row, compare, in_turn, median, number, percentile, table_cells
from benchmarks.worker import ROOT, Worker, WorkerError

SECONDS = 200


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("calls.nop_call", {"1 KiB nop call, p50", "transport ping, p99"}),
        ("calls.transfer", {"16 MiB forward, encrypted", "16 MiB forward, insecure"}),
        ("calls.codecs", {"16 MiB encode, int8", "16 MiB decode, bf16", "16 MiB forward, fp16"}),
        ("moe.dmoe_step", {"step, B=256", "step, B=2048", "expert calls a step, B=2048"}),
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
    assert all(row.ours > 0 and row.kind == "real" for row in rows)
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
        "benchmarks.moe.dmoe_step",
        "benchmarks.server.fairness",
        "benchmarks.server.ffn_throughput",
        "benchmarks.server.footprint",
    } <= set(modules())
    assert not [module for module in modules() if ".peers." in module]


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
