"""How far an offline run is: a bar with rows a second and the time that is left, where stderr is a terminal."""

from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from service.part_file import PartFile
from service.rows import Row


class _Rows(ProgressColumn):
    """Rows done, how many of them bad, and rows a second of this run."""

    def __init__(self, part: PartFile) -> None:
        super().__init__()
        self._part = part
        self._before = part.done
        self._began = monotonic()

    def render(self, _: Task) -> Text:
        speed = (self._part.done - self._before) / max(monotonic() - self._began, 1e-9)
        bad = f", {self._part.failed:,} bad" if self._part.failed else ""
        return Text(f"{self._part.done:,} rows{bad}, {speed:,.0f}/s")


class RunProgress:
    """A bar over the bytes of the input; `total` None, a pipe, shows rows alone."""

    def __init__(self, part: PartFile, total: int | None) -> None:
        """Show nothing before the block begins."""
        console = Console(stderr=True)
        columns = [TextColumn("{task.percentage:>3.0f} %"), BarColumn(), TimeRemainingColumn()] if total else []
        self._progress = Progress(*columns, _Rows(part), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> "RunProgress":
        """Begin to show."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()

    def reached(self, row: Row) -> None:
        """Show that everything up to `row` is done."""
        self._progress.update(self._task, completed=row.end)
