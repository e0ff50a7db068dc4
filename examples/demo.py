"""Train a mixture of experts that lives in other processes, and lose a server on the way.

One bootstrap node and three servers run as processes of their own on real sockets and hold the 64 experts of
an 8x8 grid. This process holds the rest: an embedding, the gate, a head. After a third of the steps one
server is killed with SIGKILL and its experts are lost; after two thirds a server with fresh experts takes its
place. Training never stops.

    python -m examples.demo [--steps N] [--data digits|mnist] [--output demo_curve.png]
"""

from __future__ import annotations

import sys
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import learning_at_home as lib
from examples import data
from examples.display import Display
from examples.history import History
from examples.swarm import Swarm, SwarmError

STEPS = {"digits": 600, "mnist": 1200}
SHARES = [22, 21, 21]  # experts of each server
VICTIM = 1
ALIVE_SECONDS = 60.0
NOISE = 0.4  # standard deviations added to training images, and
SMOOTHING = 0.1  # of the labels: 1,437 images are few, and are soon known by heart


class DataName(str, Enum):
    """What to learn."""

    digits = "digits"
    mnist = "mnist"


class Classifier(nn.Module):
    """Embedding, a residual layer of remote experts, head: ``[B, pixels]`` to ``[B, 10]``."""

    def __init__(self, pixels: int, hidden: int, network: lib.TesseractNetwork) -> None:
        super().__init__()
        self.embed = nn.Linear(pixels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.experts = lib.GatingFunction(
            in_features=hidden,
            grid_size=list(Swarm.GRID),
            network=network,
            uid_prefix=Swarm.PREFIX,
            k_best=4,
            k_min=1,
            timeout_after_k_min=2.0,
            forward_timeout=10.0,
            backward_timeout=10.0,
            balance_weight=1e-2,
        )
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        return self.head(x + self.experts(self.norm(x)))


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` that the model labels right."""
    model.eval()
    right = sum(
        int((model(x).argmax(-1) == y).sum()) for x, y in zip(images.split(1024), labels.split(1024), strict=True)
    )
    model.train()
    return right / len(labels)


def wait_for_all(model: Classifier) -> None:
    """Until every expert of the grid is alive."""
    if not model.experts.wait_for_experts(sum(SHARES), timeout=ALIVE_SECONDS):
        alive = len(model.experts.alive.experts)
        raise SwarmError(f"only {alive} of {sum(SHARES)} experts are alive after {ALIVE_SECONDS:.0f} s")


class Run:
    """A training run: the model here, the experts in the swarm, and what happened."""

    def __init__(
        self,
        model: Classifier,
        digits: data.Digits,
        swarm: Swarm,
        *,
        steps: int,
        batch: int,
        lr: float,
        seed: int,
    ) -> None:
        self.model, self.digits, self.swarm = model, digits, swarm
        self.steps, self.batch = steps, batch
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        self.random = torch.Generator().manual_seed(seed)
        self.history = History()

    def train(self, display: Display) -> None:
        """All steps, with the death of a server after one third and its return after two."""
        kill_at, return_at = self.steps // 3, 2 * self.steps // 3
        evaluate_every = max(1, self.steps // 30)
        returned = False
        self._evaluate(0)
        for step in range(self.steps):
            if step == kill_at:
                self._event(display, step, f"server {VICTIM} killed", "SIGKILL; its {} experts are lost")
                self.swarm.kill_server(VICTIM)
            if step == return_at:
                self._event(display, step, f"server {VICTIM} started again", "{} fresh experts, nothing learned yet")
                self.swarm.restart_server(VICTIM)
            self._step()
            if step >= return_at and not returned and self.history.alive[-1] == sum(SHARES):
                returned = True
                display.say(f"step {step}: the fresh experts are found; all {sum(SHARES)} are alive")
            if (step + 1) % evaluate_every == 0:
                self._evaluate(step + 1)
            history = self.history
            display.step(step + 1, history.loss[-1], history.accuracy[-1][1], history.alive[-1], sum(history.failed))

    def finish(self) -> float:
        """Wait until the server that came back is found, then the final test accuracy."""
        wait_for_all(self.model)
        self._evaluate(self.steps)
        self.history.alive_at_end = self.model.experts.last_stats.experts_alive
        return self.history.accuracy[-1][1]

    def _step(self) -> None:
        chosen = torch.randint(len(self.digits.train_y), (self.batch,), generator=self.random)
        images, labels = self.digits.train_x[chosen], self.digits.train_y[chosen]
        images = images + NOISE * torch.randn(images.shape, generator=self.random)
        loss = functional.cross_entropy(self.model(images), labels, label_smoothing=SMOOTHING)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        stats = self.model.experts.last_stats
        self.history.loss.append(loss.item())
        self.history.alive.append(stats.experts_alive)
        self.history.calls.append(stats.forward_calls + stats.backward_calls)
        self.history.failed.append(stats.forward_failed + stats.backward_failed)

    def _evaluate(self, step: int) -> None:
        self.history.accuracy.append((step, accuracy(self.model, self.digits.test_x, self.digits.test_y)))

    def _event(self, display: Display, step: int, what: str, detail: str) -> None:
        self.history.events.append((step, what))
        display.say(f"step {step}: {what} ({detail.format(SHARES[VICTIM])})")


def summary(name: str, final: float, seconds: float, history: History, output: Path) -> str:
    """The run in one line."""
    (killed, _), (returned, _) = history.events
    before, without = max(history.alive[:killed]), min(history.alive[killed:])
    return (
        f"{name}: test accuracy {final:.3f} after {len(history.loss)} steps in {seconds:.0f} s; "
        f"experts alive {before}, {without} after server {VICTIM} was killed at step {killed}, "
        f"{history.alive_at_end} after it came back at step {returned} with fresh experts; "
        f"{sum(history.failed)} of {sum(history.calls)} calls failed; curve in {output}"
    )


def demo(
    steps: Annotated[int | None, typer.Option(min=3, help="Default: 600 for digits, 1200 for mnist.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 128,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the model and of the experts.")] = 64,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate, here and on the servers.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the data's split and order and of the weights.")] = 0,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("demo_curve.png"),
    data_name: Annotated[DataName, typer.Option("--data", help="What to learn.")] = DataName.digits,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of MNIST's four .gz files.")] = None,
    min_accuracy: Annotated[float, typer.Option(help="Test accuracy below which the demo fails.")] = 0.95,
) -> None:
    """Train a mixture of experts over four processes; one server is killed and comes back."""
    console = Console()
    steps = STEPS[data_name.value] if steps is None else steps
    began = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    digits = data.load(data_name.value, seed, data_dir)
    console.print("Starting a network node and three servers: 64 experts in an 8x8 grid ...", highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="learning_at_home_") as folder,
        Swarm(SHARES, hidden, seed, Path(folder), lr) as swarm,
        lib.TesseractNetwork(swarm.root, port=0) as network,
    ):
        model = Classifier(digits.pixels, hidden, network)
        wait_for_all(model)
        run = Run(model, digits, swarm, steps=steps, batch=batch, lr=lr, seed=seed)
        with Display(console, steps) as display:
            run.train(display)
        final = run.finish()
    line = summary(data_name.value, final, time.monotonic() - began, run.history, output)
    run.history.plot(output, f"{data_name.value}: 64 experts in three server processes, one of them killed")
    console.print(line, highlight=False, soft_wrap=True)
    if final < min_accuracy:
        raise SystemExit(f"demo: test accuracy {final:.3f} is below {min_accuracy}")


def main() -> None:
    """``python -m examples.demo``"""
    try:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(demo)
        app()
    except (data.DataError, SwarmError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
