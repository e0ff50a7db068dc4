"""What happened in a training run, and its picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class History:
    """One entry a step, ``accuracy`` and ``events`` as (step, value)."""

    loss: list[float] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    accuracy: list[tuple[int, float]] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    alive_at_end: int = 0

    def plot(self, path: Path, title: str) -> None:
        """Write a PNG: loss and test accuracy above, experts alive and failed calls below, events in both."""
        import matplotlib

        matplotlib.use("Agg")  # no display needed
        from matplotlib import pyplot

        figure, (top, bottom) = pyplot.subplots(
            2, 1, sharex=True, figsize=(9, 5.5), height_ratios=[3, 1], layout="constrained"
        )
        steps = range(len(self.loss))
        top.plot(steps, self.loss, color="0.75", linewidth=0.8)
        top.plot(steps, _smooth(self.loss), color="tab:blue", label="training loss")
        top.set_ylim(0.0, max(self.loss) * 1.02)
        top.set_ylabel("training loss", color="tab:blue")
        right = top.twinx()
        right.plot(*zip(*self.accuracy, strict=True), color="tab:green", marker=".", label="test accuracy")
        right.set_ylabel("test accuracy", color="tab:green")
        right.set_ylim(0.0, 1.02)

        bottom.step(steps, self.alive, color="tab:purple")
        bottom.set_ylabel("experts alive", color="tab:purple")
        bottom.set_ylim(0, max(self.alive) * 1.1 + 1)
        bottom.set_xlabel("step")
        failures = bottom.twinx()
        failures.bar(steps, self.failed, width=1.0, color="tab:red")
        failures.set_ylabel("calls failed", color="tab:red")
        failures.set_ylim(0, max(*self.failed, 10) * 1.1)

        for step, text in self.events:
            for axes in (top, bottom):
                axes.axvline(step, color="tab:red", linestyle="--", linewidth=1.0)
            top.annotate(
                text,
                (step, 0.5),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                color="tab:red",
            )
        top.set_title(title)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def _smooth(values: list[float], window: int = 15) -> list[float]:
    """Mean of the last ``window`` values at every point."""
    means = []
    for end in range(1, len(values) + 1):
        recent = values[max(0, end - window) : end]
        means.append(sum(recent) / len(recent))
    return means
