"""Directories into a VM: only what it does not have yet, small files together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from boxwood.client import transfers
from boxwood.client._async import files
from boxwood.client._async.pause import to_thread
from boxwood.client._async.transport import AsyncTransport, in_thread
from boxwood.client.ignore import Ignore
from boxwood.client.mirror import Archive, Cache, LocalFile, Progress, SyncReport, batches, changed, opened, scan
from boxwood.client.models import Anything, Manifest

Told = Callable[[Progress], object]


async def send(
    transport: AsyncTransport,
    vm_id: str,
    local: str,
    path: str,
    *,
    ignored: Ignore | None,
    cache: Cache | None,
    progress: Told | None,
    everything: bool,
) -> tuple[SyncReport, list[str]]:
    """What was done, and the paths of programs whose modes the server did not take. `everything`: whether the VM has it
    or not."""
    found, skipped = await to_thread(scan, local, ignored)
    wanted, truncated = found, False
    if not everything:
        listed = await transport.call(transfers.sync_manifest(vm_id, path), Manifest)
        there = {entry.path: (entry.size, entry.hash) for entry in listed.entries}
        wanted, truncated = await to_thread(changed, found, there, cache), listed.truncated
    count = _Count(wanted, progress)
    direct = await transport.direct(vm_id)
    plain: list[str] = []
    for batch in batches(wanted):
        if direct and (len(batch) > 1 or not batch[0].is_text):
            await _together(transport, vm_id, path, batch, count)
        else:
            for file in batch:
                where = f"{path.rstrip('/')}/{file.name}"
                if not await _alone(transport, vm_id, where, file, count) and file.mode & 0o100:
                    plain.append(where)
    size = sum(file.size for file in wanted)
    return SyncReport(len(wanted), len(found) - len(wanted), skipped, size, truncated), plain


class _Count:
    """What has gone, and who is told."""

    def __init__(self, files: list[LocalFile], told: Told | None) -> None:
        self._all = len(files), sum(file.size for file in files)
        self._told = told
        self._files = self._bytes = 0
        self.moved(0)

    def moved(self, size: int) -> None:
        self._bytes += size
        self._tell()

    def file(self, size: int) -> None:
        """One whole file, of which none was told."""
        self._files += 1
        self.moved(size)

    def ended(self) -> None:
        """One whose bytes have been told."""
        self.file(0)

    def _tell(self) -> None:
        if self._told is not None:
            self._told(
                Progress(min(self._files, self._all[0]), self._all[0], min(self._bytes, self._all[1]), self._all[1])
            )


async def _together(
    transport: AsyncTransport, vm_id: str, path: str, batch: list[LocalFile], count: _Count
) -> None:  # fmt: skip
    archive = Archive(batch)

    async def pieces() -> AsyncIterator[bytes]:
        read: list[int] = []  # sizes of files, which are told of from here: not in a thread
        async for piece in in_thread(archive.pieces(read.append)):
            while read:
                count.file(read.pop())
            yield piece

    await transport.deliver(transfers.unpack(vm_id, path, archive.size), pieces, archive.size, Anything, again=True)


async def _alone(transport: AsyncTransport, vm_id: str, where: str, file: LocalFile, count: _Count) -> bool:
    """Has it its mode?"""
    with opened(file) as content:
        whole = await files.write(transport, vm_id, where, content, file.mode & 0o1777, count.moved)
    count.ended()
    return whole
