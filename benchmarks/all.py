"""Every benchmark, one after the other, and one table of all in Markdown.

Takes the options of a benchmark. `--json FILE` writes the rows of all; the table also says when, on what and from which
commit, and is what RESULTS.md holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Row, commit, console, machine, parse_options, table_lines
from benchmarks.worker import ROOT

NOT_AREAS = {"gpu", "peers"}


def main() -> int:
    """Run them; the status says how many failed."""
    options = parse_options(__doc__)
    passed_on = _without_json(sys.argv[1:])
    rows: list[Row] = []
    failed = []
    for module in modules():
        console().print(f"[bold]{module}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            command = [sys.executable, "-m", module, *passed_on, "--json", str(file)]
            if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
                failed.append(module)
            elif file.exists():
                rows += [Row(**row) for row in json.loads(file.read_text())]
    if options.json is not None:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    print(markdown(rows))
    for module in failed:
        console().print(f"[red]{module} failed")
    return len(failed)


def modules() -> list[str]:
    """Names of all benchmarks: every public module of every area."""
    files = sorted((ROOT / "benchmarks").glob("*/[!_]*.py"))
    return [f"benchmarks.{file.parent.name}.{file.stem}" for file in files if file.parent.name not in NOT_AREAS]


def markdown(rows: list[Row]) -> str:
    """The table, under a line that says where it comes from."""
    # Where somebody's environments lie is nobody's business.
    arguments = ["PATH" if "/" in argument else argument for argument in _without_json(sys.argv[1:])]
    command = " ".join(["python -m benchmarks.all", *arguments])
    text = [
        f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()}, load {os.getloadavg()[1]:.1f}",
        "",
        f"`{command}`",
        "",
    ]
    return "\n".join(text + table_lines(rows))


def _without_json(arguments: list[str]) -> list[str]:
    if "--json" not in arguments:
        return arguments
    at = arguments.index("--json")
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    sys.exit(main())
