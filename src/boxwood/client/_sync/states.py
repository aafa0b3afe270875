# Made from ../_async/states.py by tools/unasync.py: change that one.
"""The states of a VM: kept under names, gone back to, compared."""

from __future__ import annotations

from boxwood.client import snapshots
from boxwood.client._sync.pause import to_thread
from boxwood.client._sync.transport import Transport
from boxwood.client.fields import VMFields
from boxwood.client.localfiles import LocalFile, written_to
from boxwood.client.models import Anything, VMRecord
from boxwood.client.snapshots import Diff, Snapshot, SnapshotList


class States(VMFields):
    """What a VM can do with its states."""

    _transport: Transport

    def snapshot(self, name: str, *, description: str | None = None) -> Snapshot:
        """Keeps what the VM shows now under a name; what runs in it goes on. It costs no space but for what changes
        afterwards, and goes with the VM.

        :param name: unique among the VM's snapshots.
        :raises AlreadyExists: the VM has a snapshot of this name.
        """
        return self._transport.call(snapshots.take(self.id, name, description), Snapshot)

    def snapshots(self) -> list[Snapshot]:
        """The VM's snapshots, the oldest first."""
        return (self._transport.call(snapshots.listed(self.id), SnapshotList)).snapshots

    def delete_snapshot(self, snapshot: str | Snapshot) -> None:
        """Deletes a snapshot, by its name, its id or itself. What was forked from it keeps all that it has.

        :raises NotFound: the VM has no such snapshot.
        """
        self._transport.call(snapshots.drop(self.id, _reference(snapshot)), Anything)

    def restore(self, snapshot: str | Snapshot, *, force: bool = False) -> None:
        """Takes the VM back to a snapshot, in place: its files and its sessions are as they were then. It keeps its id,
        its name, its settings and its snapshots.

        :param force: end what runs in the VM.
        :raises ResourceBusy: something runs in the VM.
        """
        call = snapshots.restore(self.id, _reference(snapshot), force)
        self._record = self._transport.call(call, VMRecord)

    def diff(
        self,
        since: str | Snapshot | VMFields | None = None,
        to: str | Snapshot | None = None,
        *,
        path: str = "/",
        text: bool = False,
        limit: int = 1000,
    ) -> Diff:
        """What has changed, at a cost that grows with what has, not with what there is.

        :param since: a snapshot of this VM, another VM, or "image" for what the VM was made of in the beginning; None:
            what it was when it was forked.
        :param to: a snapshot of this VM; None: what it is now.
        :param path: only what is below this directory.
        :param text: with the changed lines of text files.
        :param limit: changes at most, up to 10,000.
        :raises Conflict: nobody knows any more what the VM was when it was forked.
        """
        other = since.id if isinstance(since, VMFields) else None if since is None else _reference(since)
        call = snapshots.diff(self.id, other, None if to is None else _reference(to), path, text, limit)
        return self._transport.call(call, Diff)

    def commit(self, into: str | VMFields | None = None, *, force: bool = False) -> str:
        """Folds what this VM has changed since it was forked into what it was forked from, or into another VM; this VM
        stays as it is. All or nothing: what both have changed, and not to the same, is a collision.

        :param into: a VM, its id or its name; None: what this VM was forked from.
        :param force: end what runs in that VM.
        :returns: the id of the VM that has the changes now.
        :raises Conflict: they collide (`details["collisions"]` are paths), or nobody knows any more what this VM was
            when it was forked.
        :raises ResourceBusy: something runs in that VM.
        """
        other = into.id if isinstance(into, VMFields) else into
        return (self._transport.call(snapshots.commit(self.id, other, force), VMRecord)).vm_id

    def export(self, file: LocalFile, *, full: bool = False) -> int:
        """Writes this VM as one file: a tar archive packed with zstd, with a digest of all of it. Never all in memory.

        :param file: a path, where the file appears when it is whole, or an open binary file.
        :param full: with the image that the VM stands on; without it the file can be imported only where that is.
        :returns: how many bytes were written.
        :raises BoxwoodError: the server said no, or the connection broke; what is in an open file is then not whole.
        """
        size = 0
        with written_to(file) as out:
            for piece in self._transport.pieces(snapshots.export(self.id, full), "application/zstd"):
                to_thread(out.write, piece)
                size += len(piece)
        return size


def _reference(snapshot: str | Snapshot) -> str:
    return snapshot.snapshot_id if isinstance(snapshot, Snapshot) else snapshot
