"""The progress of a training run: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 5.0
FIELDS = "loss {loss:.3f}  accuracy {accuracy:.3f}  experts alive {alive}  calls failed {failed}"


class Display:
    """Shows every step of ``steps``. A context manager."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._next_line = 0.0
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, done: int, loss: float, accuracy: float, alive: int, failed: int) -> None:
        """``done`` steps are done; ``accuracy`` is the latest, ``failed`` counts from the start."""
        text = FIELDS.format(loss=loss, accuracy=accuracy, alive=alive, failed=failed)
        self._progress.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and (time.monotonic() >= self._next_line or done == self._steps):
            self._next_line = time.monotonic() + LINE_SECONDS
            self._console.print(f"step {done}/{self._steps}  {text}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)
