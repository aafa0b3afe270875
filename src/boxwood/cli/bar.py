"""A bar for what is being copied, on a terminal; elsewhere nothing."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from boxwood.cli.output import clean
from boxwood.client.mirror import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

WORTH_BYTES = 4 << 20  # less is there before a bar would be, and so are …
WORTH_FILES = 100


class Bar:
    """Called with how far it is. `what`: shown beside it."""

    def __init__(self, what: str) -> None:
        self._what = clean(what)
        self._shown = sys.stderr.isatty()
        self._bar: tuple[RichProgress, TaskID] | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def __call__(self, done: Progress) -> None:
        if not self._shown or (done.all_bytes < WORTH_BYTES and done.all_files < WORTH_FILES):
            return
        if self._bar is None:
            self._bar = self._begin(done.all_bytes)
        bar, task = self._bar
        bar.update(task, completed=done.bytes, total=done.all_bytes, files=f"{done.files}/{done.all_files}")

    def _begin(self, total: int) -> tuple[RichProgress, TaskID]:
        """rich takes longer to load than most commands take to run: only now."""
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Shown

        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TextColumn("{task.fields[files]} files"), TimeRemainingColumn(),
        )  # fmt: skip
        bar = Shown(*columns, console=Console(stderr=True), transient=True)
        bar.start()
        return bar, bar.add_task(escape(self._what), total=total, files="")
