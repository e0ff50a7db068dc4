"""One command for a machine with an NVIDIA GPU: builds the ops for it, checks them, times them, and prints the table.

Every stage is a process of its own with a deadline; one that fails is reported, and the next one runs. The status is
the number of stages that failed, or 2 and one line where there is no GPU or nothing to build with.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.common import Row, commit, console, table_cells, table_lines
from benchmarks.gpu.build import build, describe, missing, nvcc, without_kernels
from benchmarks.gpu.process import Outcome, run
from benchmarks.worker import ROOT

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
MINUTE = 60.0


def checks(quick: bool) -> list[Outcome]:
    """The tests on the device, the sanitizer, and more than 2**31 elements."""
    python, exercise = sys.executable, ["-m", "benchmarks.gpu.exercise", "cuda"]
    tests = ["-m", "pytest", "-q", "tests/ops", *(["-k", "cuda"] if quick else []), "tests/test_moe.py"]
    outcomes = [
        _told(run("tests", [python, *tests], 30 * MINUTE)),
        _told(run("every op", [python, *exercise], 5 * MINUTE)),
        _told(run("beyond 2**31 elements", [python, *exercise, "--beyond-int32"], 10 * MINUTE)),
    ]
    sanitizer = nvcc("compute-sanitizer")
    for tool in ("memcheck", "synccheck"):
        if sanitizer is None:
            outcomes.append(_told(Outcome(tool, None, "no compute-sanitizer found")))
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", python, *exercise]
        outcomes.append(_told(run(tool, command, 20 * MINUTE, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})))
    return outcomes


def measured(names: Sequence[str], quick: bool) -> tuple[list[Outcome], list[Row]]:
    """Run stages of `benchmarks.gpu.stages`; (outcomes, rows of all)."""
    outcomes, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            file = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "benchmarks.gpu.stages", name, "--json", str(file)]
            outcomes.append(_told(run(name, [*command, *(["--quick"] if quick else [])], 15 * MINUTE)))
            if file.exists():
                rows += [Row(**row) for row in json.loads(file.read_text())]
    return outcomes, rows


def markdown(machine: str, outcomes: Sequence[Outcome], rows: Sequence[Row]) -> str:
    """What `--record` appends to RESULTS.md."""
    words = [word for word in sys.argv[1:] if word != "--record"]
    head = [
        f"## On a GPU, {time.strftime('%Y-%m-%d')}",
        "",
        f"Commit {commit()}, {machine}. `{' '.join(['python -m benchmarks.gpu', *words])}`",
        "",
    ]
    return "\n".join([*head, *(f"- {outcome.line()}" for outcome in outcomes), "", *table_lines(rows)]) + "\n"


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    parser.add_argument("--rebuild", action="store_true", help="build the ops although their kernels are there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and fewer tests, to try the command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    given = parser.parse_args()
    if (reason := missing()) is not None:
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        return 2
    outcomes = []
    if given.rebuild or without_kernels():
        outcomes.append(_told(build(torch.cuda.get_device_capability())))
        if not outcomes[0].passed:
            return 2
    machine = describe()
    console().print(machine)
    found, rows = measured(("kernels",), given.quick)
    outcomes += found + checks(given.quick)
    found, more = measured(("launches", "movement", "routing", "activation", "moe", "graph"), given.quick)
    outcomes, rows = outcomes + found, rows + more
    _show(rows)
    if given.json is not None:
        given.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    if given.record:
        with RESULTS.open("a") as file:
            file.write("\n" + markdown(machine, outcomes, rows))
    for outcome in outcomes:
        console().print(outcome.line(), markup=False)
    return sum(outcome.passed is False for outcome in outcomes)


def _told(outcome: Outcome) -> Outcome:
    console().print(outcome.line(), markup=False)
    if outcome.passed is False:
        console().print(outcome.tail, markup=False)
    return outcome


def _show(rows: Sequence[Row]) -> None:
    header, lines = table_cells(rows)
    table = Table(title=f"On this GPU (load {os.getloadavg()[0]:.1f})", title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column == header[0] else "right")
    for line in lines:
        table.add_row(*line)
    console().print(table)


if __name__ == "__main__":
    sys.exit(main())
