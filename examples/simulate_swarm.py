"""How long a lookup takes, from a hundred nodes to a hundred thousand: simulated, and plotted.

    python -m examples.simulate_swarm [--quick] [--output simulated_swarm.png]

Nodes live in four regions with a median round trip of 110 ms; a fifth of them has died since the others last heard of
them. The largest network needs about 8 GB and a few minutes; --quick ends at two thousand nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from learning_at_home.sim import LookupTimes, study_lookups

SIZES = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000]
QUICK_SIZES = [100, 500, 2_000]


def main(
    quick: Annotated[bool, typer.Option(help="three small networks")] = False,
    output: Annotated[Path, typer.Option(help="the picture")] = Path("simulated_swarm.png"),
    seed: Annotated[int, typer.Option(help="all randomness follows from it")] = 1,
    dead: Annotated[float, typer.Option(help="share of nodes that died")] = 0.2,
) -> None:
    """Simulate, print and plot."""
    console = Console()
    sizes = QUICK_SIZES if quick else SIZES
    studies = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for nodes in sizes:
            task = progress.add_task(f"{nodes:,} nodes")

            def told(what: str, done: int, total: int, task: object = task, nodes: int = nodes) -> None:
                progress.update(task, description=f"{nodes:,} nodes: {what}", completed=done, total=total)

            study = study_lookups(nodes, seed=seed, dead=dead, lookups=300 if quick else 1000, progress=told)
            progress.remove_task(task)
            studies.append(study)
            progress.console.print(line(nodes, study), highlight=False)
    plot(output, sizes, studies, dead)
    console.print(f"wrote {output}", highlight=False)


def line(nodes: int, study: LookupTimes) -> str:
    """One network in words."""
    return (
        f"{nodes:>7,} nodes: get {1e3 * share(study.gets, 0.5):.0f} ms (p95 {1e3 * share(study.gets, 0.95):.0f}), "
        f"the eight closest {1e3 * share(study.closest, 0.5):.0f} ms (p95 {1e3 * share(study.closest, 0.95):.0f}), "
        f"{study.contacts:.0f} contacts a table"
    )


def share(values: list[float], part: float) -> float:
    """The value that this part of all values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def plot(path: Path, sizes: list[int], studies: list[LookupTimes], dead: float) -> None:
    """Write a PNG: medians as lines, up to the 95th percentile as areas."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for label, color, series in (
        ("get, first replica", "tab:blue", [study.gets for study in studies]),
        ("eight closest nodes", "tab:green", [study.closest for study in studies]),
        ("store, eight replicas", "tab:orange", [study.stores for study in studies]),
    ):
        middle = [1e3 * share(values, 0.5) for values in series]
        axes.plot(sizes, middle, color=color, marker=".", label=f"{label}: median, p95")
        axes.fill_between(sizes, middle, [1e3 * share(values, 0.95) for values in series], color=color, alpha=0.15)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes")
    axes.set_ylabel("ms")
    axes.set_title(f"Lookups in a simulated swarm: four regions, median RTT 110 ms, {dead:.0%} dead")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
