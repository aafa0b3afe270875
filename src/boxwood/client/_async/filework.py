"""The files of a VM: what lies where, names and modes, patterns, text, changes, whole directories in and out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from boxwood.client import filerecords as wire
from boxwood.client import trees
from boxwood.client._async.pause import to_thread
from boxwood.client._async.transport import AsyncTransport, pieces_of
from boxwood.client.errors import ConnectionFailed
from boxwood.client.filerecords import FileChange, FileInfo, FilesFound, Path, TextFound, Transfer
from boxwood.client.models import Anything

IN_MEMORY = 8 << 20  # bytes of one above which it lies on this machine's disk


class AsyncFiles:
    """Of `AsyncVM.files`. Paths are absolute; bytes that are no UTF-8 are lone surrogates in text, as in `os` (or give
    bytes). What is not on the VM's disk (/dev, /proc, /sys, /run) is refused."""

    def __init__(self, transport: AsyncTransport, vm_id: str) -> None:
        self._transport = transport
        self._vm = vm_id

    async def stat(self, path: Path, *, follow: bool = False) -> FileInfo:
        """What lies at a path.

        :param follow: of a symbolic link: what it leads to.
        :raises FileMissing: nothing does.
        """
        call = wire.call(self._vm, "stat", path, follow=follow or None)
        return (await self._transport.call(call, wire.StatAnswer)).info()

    async def list(self, path: Path, *, page_size: int | None = None) -> AsyncIterator[FileInfo]:
        """The entries of a directory in the order of their names' bytes, fetched page by page."""
        cursor = None
        while True:
            call = wire.call(self._vm, "list", path, cursor=cursor, limit=page_size)
            page = await self._transport.call(call, wire.ListAnswer)
            for info in page.infos():
                yield info
            if (cursor := page.next_cursor) is None:
                return

    async def mkdir(self, path: Path, *, parents: bool = False, mode: int | None = None) -> bool:
        """Makes a directory. Was it made?

        :param parents: make those above it too; one that is there is no error.
        :param mode: permission bits; None: 0o755.
        """
        call = wire.post(self._vm, "mkdir", path, safe=parents, parents=parents or None, mode=mode)
        return (await self._transport.call(call, wire.MkdirAnswer)).created

    async def chmod(self, path: Path, mode: int) -> None:
        """Changes permission bits; links are followed."""
        await self._transport.call(wire.post(self._vm, "chmod", path, safe=True, mode=mode), Anything)

    async def move(self, path: Path, to: Path, *, replace: bool = False) -> None:
        """Gives a file or a directory another path: `to` itself, not a directory to move it into.

        :param replace: what is at `to` gives way; a directory does only if it is empty.
        :raises Conflict: there is something at `to`.
        """
        await self._transport.call(wire.move(self._vm, path, to, replace), Anything)

    async def remove(self, path: Path, *, recursive: bool = False) -> int:
        """Deletes a file, a link itself, or a directory. How many names were deleted?

        :param recursive: a directory with all that is below it.
        :raises Conflict: a directory that is not empty, without `recursive`.
        """
        call = wire.post(self._vm, "remove", path, recursive=recursive or None)
        return (await self._transport.call(call, wire.RemoveAnswer)).removed

    async def glob(
        self,
        path: Path,
        pattern: str,
        *,
        limit: int | None = None,
        seconds: float | None = None,
    ) -> FilesFound:
        """What below a directory has a path of this pattern: `*`, `?`, `[…]` within a name, `**` across directories,
        `{a,b}`. A leading dot is as any other character.

        :param limit: entries at most, up to 10,000; None: 1,000.
        :param seconds: after which what was found is told, up to 60; None: 10.
        """
        call = wire.call(self._vm, "glob", path, pattern=pattern, limit=limit, seconds=seconds)
        found = await self._transport.call(call, wire.ListAnswer)
        return FilesFound(found.infos(), found.truncated)

    async def search(
        self,
        path: Path,
        pattern: str,
        *,
        literal: bool = False,
        ignore_case: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        limit: int | None = None,
        seconds: float | None = None,
        engine: str = "auto",
    ) -> TextFound:
        """Lines of text below a directory, or in one file, that match. Hidden files too; what holds NUL is no text.

        :param pattern: a regular expression (of ripgrep's where the VM has it, else of Python's), or with `literal` a
            text.
        :param include: only files with such paths, or names where a pattern has no slash; `exclude`: none of these.
        :param engine: auto, ripgrep or builtin.
        :param limit, seconds: as of `glob`.
        """
        call = wire.post(
            self._vm, "search", path, safe=True, pattern=pattern, literal=literal or None,
            ignore_case=ignore_case or None, include=list(include) or None, exclude=list(exclude) or None, limit=limit,
            seconds=seconds, engine=engine,
        )  # fmt: skip
        return (await self._transport.call(call, wire.SearchAnswer)).found()

    async def watch(
        self, path: Path, *, recursive: bool = True, directories: int | None = None
    ) -> AsyncGenerator[FileChange, None]:
        """Changes below a directory as they happen; the first one is `watching`, the last one `gone`.

        It is not resumed: after a break look for what has changed, and watch anew. As long as it goes on the VM is not
        parked.

        :param directories: watched at most, up to 8,192.
        :raises ConnectionFailed: the connection broke.
        """
        call = wire.call(self._vm, "watch", path, recursive=recursive, directories=directories)
        events = self._transport.events(call)
        try:
            async for said in events:
                change = wire.change(said)
                yield change
                if change.kind == "gone":
                    return
        finally:
            await events.aclose()
        raise ConnectionFailed("connection_lost", "the server ended its answer; watch again, and look for changes")

    async def download_dir(self, path: Path, target: str | os.PathLike[str]) -> Transfer:
        """Brings a directory to this machine, into `target`, which is made if need be. What is there already and not in
        the VM stays.

        Nothing is written before all of it has come. Links that lead out of the directory are left out.
        """
        call = wire.call(self._vm, "tar", path)
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
            async for piece in self._transport.pieces(call, wire.TAR):
                await to_thread(spool.write, piece)
            spool.seek(0)
            return await to_thread(trees.unpack, spool, os.fspath(target))

    async def upload_dir(self, source: str | os.PathLike[str], path: Path, *, owners: bool = False) -> Transfer:
        """Brings a directory of this machine into the VM, at `path`, which is made if need be. What is there already
        and not here stays. Each file appears whole or not at all.

        :param owners: files get the numbers of their owners here; else they are root's.
        """
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
            packed = await to_thread(trees.pack, os.fspath(source), spool)
            size = spool.tell()
            spool.seek(0)
            call = wire.upload(self._vm, path, owners)
            done = await self._transport.deliver(call, lambda: pieces_of(spool), size, Transfer, again=False)
        return Transfer(done.entries, done.bytes, done.skipped + packed.skipped)
