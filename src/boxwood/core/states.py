"""What VMs and snapshots hold, compared with each other.

None of it looks into a VM's files here: the engine does, in processes that see nothing but the layers concerned.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import AsyncExitStack

from boxwood.core import words
from boxwood.core.access import Access
from boxwood.core.errors import Conflict, NotFound
from boxwood.core.model import Caller
from boxwood.core.refusals import of_engine
from boxwood.core.snapshots import IMAGE, Snapshots
from boxwood.core.tasks import Tasks
from boxwood.core.views import View, Views
from boxwood.engine.api import Engine, EngineError
from boxwood.engine.states import Difference, Sealed
from boxwood.store.vms import VMRow

MOST_CHANGES = 10_000  # of one answer
AT_ONCE = 2  # comparisons of an organisation; more wait for these


class States:
    def __init__(self, engine: Engine, access: Access, snapshots: Snapshots, views: Views, tasks: Tasks) -> None:
        self._engine = engine
        self._access = access
        self._snapshots = snapshots
        self._views = views
        self._tasks = tasks
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    def turn(self, org_id: str) -> asyncio.Semaphore:
        """To be held while something is done that takes long: others of the organisation wait, nobody else does."""
        turn = self._turns.get(org_id)
        if turn is None:
            turn = self._turns[org_id] = asyncio.Semaphore(AT_ONCE)
        return turn

    async def diff(
        self,
        caller: Caller,
        vm: str,
        since: str | None = None,
        to: str | None = None,
        *,
        path: str = "/",
        text: bool = False,
        limit: int = 1000,
    ) -> Difference:
        """What is another in a VM, or in its snapshot `to`, than in `since`: a snapshot of the VM, another VM, `image`
        (what it was made of in the beginning), or None: what it was when it was forked. `path`: only below it.
        `text`: with the changed lines of text files. At most `limit` changes, by path.

        BadRequest, NotFound, Forbidden, Conflict (nobody knows any more what it was when it was forked), ResourceBusy.
        """
        words.limit(limit, MOST_CHANGES)
        below = words.path(path).strip("/")
        if ".." in below.split("/"):
            raise words.refuse("path", "must not hold ..")
        row = self._access.own(caller, vm)
        new = row if to is None else self._snapshots.row(caller, vm, to)
        old = None if since in (None, IMAGE) else self._since(caller, row, str(since))
        async with self.turn(caller.org_id):
            return await self._tasks.finish(self._diff(row, old, new, since, below, text, limit))

    def _since(self, caller: Caller, row: VMRow, since: str) -> VMRow:
        try:
            return self._snapshots.row(caller, row.id, since)
        except NotFound:
            pass
        try:
            return self._access.seen(caller, since)
        except NotFound:
            raise NotFound("vm", "since: there is no such snapshot of the VM, and no such VM") from None

    async def _diff(
        self, row: VMRow, old: VMRow | None, new: VMRow, since: str | None, below: str, text: bool, limit: int
    ) -> Difference:
        async with AsyncExitStack() as held:
            view = await held.enter_async_context(self._views.of(new, forked=row.id))
            if old is not None:
                before = (await held.enter_async_context(self._views.of(old))).layers
            elif since == IMAGE:
                before = image_of(view)
            else:
                before = fork_point(view)
            try:
                return await self._engine.states.diff(before, view.layers, most=limit, text=text, below=below)
            except EngineError as error:
                raise of_engine(error, "vm") from error


def fork_point(view: View) -> Sealed:
    """What a VM showed when it was forked: a part of what it stands on. Conflict."""
    at = next((n for n, (_, layer) in enumerate(view.layers) if layer == view.fork_base), None)
    if at is None:
        raise Conflict(
            "vm",
            "what the VM was when it was forked is not known any more (its layers have been merged, or it is older "
            "than snapshots are): name a snapshot or another VM to compare with, or `image`",
        )
    return view.layers[at:]


def image_of(view: View) -> Sealed:
    return tuple(layer for layer in view.layers if layer[0] == "image")
