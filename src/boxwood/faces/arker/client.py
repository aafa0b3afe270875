"""The client: everything starts here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

from boxwood.client._sync.client import PUBLIC_ORG, Boxwood
from boxwood.client._sync.vm import VM
from boxwood.client.answers import Retry
from boxwood.faces.arker.computer import Computer
from boxwood.faces.arker.errors import ArkerError, bad_request, translated
from boxwood.faces.arker.listing import listed
from boxwood.faces.arker.results import Filesystem, FilesystemList, VmList, filesystem

RETRY = {"attempts", "base_delay_ms", "max_delay_ms"}


@dataclass(frozen=True)
class VmPage:
    """Computers: iterable, with a length. All of them, so there is no `next_cursor`."""

    vms: list[Computer]
    next_cursor: None = None

    @property
    def items(self) -> list[Computer]:
        return self.vms

    def __iter__(self) -> Iterator[Computer]:
        return iter(self.vms)

    def __len__(self) -> int:
        return len(self.vms)


class Arker:
    """A Boxwood server, spoken to as Arker is. As a context manager its connections are closed at the end.

    :param api_key: else ARKER_API_KEY; else the key that belongs to the server, as for `boxwood.Boxwood`.
    :param base_url: else ARKER_BASE_URL; else the server of this machine.
    :param region: else ARKER_REGION. Kept and without effect: a Boxwood server is one region.
    :param retry: False, or how requests that may be repeated are: {"attempts", "base_delay_ms", "max_delay_ms"}.
    :raises ArkerError: unavailable: no server was named and none runs here; unauthorized: no key belongs to it.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        region: str | None = None,
        retry: bool | Mapping[str, int] | None = None,
    ) -> None:
        url = base_url or os.environ.get("ARKER_BASE_URL") or None
        key = api_key or os.environ.get("ARKER_API_KEY") or None
        self.region = region or os.environ.get("ARKER_REGION") or None
        pauses = _retry(retry)
        with translated():
            self._box = Boxwood(url, key, retries=pauses)
        self.base_url = self._box.url

    def vm(self, vm_id: str) -> Computer:
        """A handle by id or name, without a request. A public name such as "arkuntu" is there to be forked."""
        with translated():
            return Computer(self._box.vm(vm_id))

    def fork(
        self,
        source: Computer | str | None = None,
        *,
        name: str | None = None,
        source_vm_name: str | None = None,
        source_org_id: str | None = None,
        public: bool = False,
        durable: bool = False,
        idempotency_key: str | None = None,
    ) -> Computer:
        """A new computer from a public golden by its name, or from another computer.

        :param source: a computer, its id, or a name: your own first, then the goldens.
        :param source_vm_name: instead of `source`; with `source_org_id`, of that organisation.
        :param durable: what it acknowledges survives a loss of power, and what runs in the background is begun again
            after one; not inherited.
        :param idempotency_key: the same key gives the same computer.
        :raises ArkerError: not_found; conflict: the name is taken; unsupported_operation: `durable`, if its disk is
            limited and the host has no quotas.
        """
        if (source is None) == (source_vm_name is None):
            raise bad_request("fork: either a source or source_vm_name")
        if source_org_id is not None and source_vm_name is None:
            raise bad_request("fork: source_org_id goes with source_vm_name")
        with translated():
            wanted = source_vm_name or (source.id if isinstance(source, Computer) else str(source))
            origin = wanted if source_org_id is None else self._of(source_org_id, wanted)
            made = self._box.fork(origin, name, public=public, durable=durable, idempotency_key=idempotency_key)
            return Computer(made)

    def _of(self, org: str, name: str) -> str:
        """The id of an organisation's VM: the public one's or one's own, there are no others."""
        for vm in self._box.images() if org == PUBLIC_ORG else self._own(org):
            if vm.name == name:
                return vm.id
        raise ArkerError("not_found", f"{org} has no VM {name!r} to fork", 404)

    def _own(self, org: str) -> Iterable[VM]:
        caller = self._box.whoami()
        return self._box.list(page_size=1000) if org in (caller.org_id, caller.org_name) else ()

    def list(self, *, limit: int = 25, offset: int = 0, q: str | None = None, sort: str | None = None) -> VmList:
        """A page of your VMs.

        :param limit: 1 to 100.
        :param q: only those with this in their name.
        :param sort: created_at, -created_at (the newest first, the default), region or -region.
        :raises ArkerError: bad_request.
        """
        with translated():
            return listed(self._box.list(page_size=1000), limit=limit, offset=offset, q=q, sort=sort)

    def list_vms(self, *, state: str | None = None) -> VmPage:
        """Your computers, the newest first; `state`: only those that are idle, or running."""
        with translated():
            return VmPage([Computer(vm) for vm in self._box.list(state=state, page_size=1000)])

    def create_filesystem(self, *, name: str) -> Filesystem:
        """A volume that outlives computers. :raises ArkerError: conflict: the name is taken."""
        with translated():
            return filesystem(self._box.filesystems.create(name))

    def list_filesystems(self) -> FilesystemList:
        """Yours, by name."""
        with translated():
            return FilesystemList([filesystem(one) for one in self._box.filesystems.list(page_size=1000)])

    def delete_filesystem(self, filesystem_id: str) -> None:
        """:raises ArkerError: not_found; conflict: it is mounted in a computer."""
        with translated():
            self._box.filesystems.delete(filesystem_id)

    def close(self) -> None:
        """Closes the connections."""
        self._box.close()

    def __enter__(self) -> Arker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Arker {self.base_url}>"


def _retry(given: bool | Mapping[str, int] | None) -> Retry:
    if given is None or given is True:
        return Retry()
    if given is False:
        return Retry(retries=0)
    if unknown := given.keys() - RETRY:
        raise bad_request(f"retry: unknown {', '.join(sorted(unknown))}; there are {', '.join(sorted(RETRY))}")
    attempts, base, most = given.get("attempts", 4), given.get("base_delay_ms", 200), given.get("max_delay_ms", 2000)
    if attempts < 1 or base < 0 or most < 0:
        raise bad_request("retry: at least one attempt, and no negative pauses")
    return Retry(attempts - 1, base / 1000, most / 1000)
