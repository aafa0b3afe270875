# Made from ../_async/client.py by tools/unasync.py: change that one.
"""The client: everything starts here."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

from boxwood.client import calls, discovery, pools, snapshots
from boxwood.client._sync.policies import Secrets
from boxwood.client._sync.pool import Pool
from boxwood.client._sync.transport import Transport, pieces_of
from boxwood.client._sync.vm import VM
from boxwood.client._sync.volumes import Filesystems
from boxwood.client.answers import Retry
from boxwood.client.localfiles import LocalFile, read_from
from boxwood.client.models import (
    Anything,
    ApiKey,
    Health,
    Identity,
    Image,
    KeyList,
    PoolList,
    PoolRecord,
    VMPage,
    VMRecord,
)
from boxwood.client.storage import StorageGarbage, StorageReport, StorageUsage

PUBLIC_ORG = "ArkerHQ"  # whose VMs are the goldens


class Boxwood:
    """A Boxwood server. As a context manager its connections are closed at the end.

    Without arguments it finds the server of this machine and its key; see `boxwood.client.discovery` for the order.

    :param url: where the server is; else BOXWOOD_URL; else the local server.
    :param api_key: else BOXWOOD_API_KEY, where that belongs to the url; else the local server's own.
    :param timeout: seconds without an answer after which a request fails; waiting for commands is not counted.
    :param retries: how often a request that may be repeated is repeated; or a `Retry`, with its pauses too.
    :raises ConnectionFailed: no server is named and none runs here; `boxwood up` starts one.
    :raises Unauthorized: no key belongs to the url.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = 60.0, retries: int | Retry = 3
    ) -> None:
        target = discovery.find(url, api_key)
        self.url = target.url
        self._transport = Transport(target, timeout, Retry(retries) if isinstance(retries, int) else retries)

    def fork(
        self,
        source: VM | str = "ubuntu",
        name: str | None = None,
        *,
        description: str | None = None,
        public: bool = False,
        vcpu: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        pids: int | None = None,
        nofile: int | None = None,
        network: str | None = None,
        ttl: float | None = None,
        durable: bool = False,
        policies: Mapping[str, Any] | None = None,
        command: str | Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> VM:
        """A new VM from another one, or from a golden like "ubuntu".

        :param source: a VM, its id, or a name: your own VMs first, then the goldens.
        :param name: yours to choose, unique in your organisation.
        :param public: may others fork it?
        :param vcpu: cores; `memory_mib`, `disk_mib` in MiB; None: as the source.
        :param pids: processes and threads at once; `nofile`: open files of each process; None: as the source.
        :param ttl: seconds until it is deleted by itself; None: as your API key says, which is never for most.
        :param durable: what it acknowledges survives a loss of power, and what runs in the background is begun again
            after one; not inherited.
        :param network: "internet" or "none"; None: as the source, for a golden as the server is set.
        :param policies: `{"rules": …, "secrets": …}` on top of what the source may reach: see `VM.policies`.
        :param command: started in the background as soon as the VM is there.
        :param idempotency_key: the same key gives the same VM; without one, each call makes its own.
        :raises NotFound: no such source.
        :raises AlreadyExists: the name is taken.
        """
        call = calls.fork(
            source.id if isinstance(source, VM) else source, name=name, description=description, public=public,
            vcpu=vcpu, memory_mib=memory_mib, disk_mib=disk_mib, pids=pids, nofile=nofile, network=network, ttl=ttl,
            durable=durable, policies=policies, command=command, idempotency_key=idempotency_key,
        )  # fmt: skip
        return VM(self._transport, self._transport.call(call, VMRecord))

    def vm(self, vm: str) -> VM:
        """A handle for the VM with this id or name, without asking the server; `refresh()` of it does."""
        calls.vm_path(vm)
        return VM(self._transport, VMRecord(vm))

    def get(self, vm: str) -> VM:
        """A VM by id or name.

        :raises NotFound: there is none, or it is not yours.
        """
        return VM(self._transport, self._transport.call(calls.get(calls.vm_path(vm)), VMRecord))

    def list(
        self,
        *,
        state: str | None = None,
        public: bool | None = None,
        org_id: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int | None = None,
    ) -> Iterator[VM]:
        """Your VMs, newest first, fetched page by page (of at most `page_size`)."""
        cursor = None
        while True:
            call = calls.get(
                "/v1/vms", cursor=cursor, limit=page_size, state=state, public=public, org_id=org_id,
                created_after=created_after, created_before=created_before,
            )  # fmt: skip
            page = self._transport.call(call, VMPage)
            for record in page.vms:
                yield VM(self._transport, record)
            if (cursor := page.next_cursor) is None:
                return

    def delete(self, vm: VM | str) -> None:
        """Deletes a VM, given itself, its id or its name.

        :raises NotFound: there is none.
        """
        path = calls.vm_path(vm.id if isinstance(vm, VM) else vm)
        self._transport.call(calls.delete(path), Anything)

    def images(self) -> builtins.list[VM]:
        """The goldens of this server, to be forked by name."""
        return list(self.list(public=True, org_id=PUBLIC_ORG))

    def create_pool(
        self,
        name: str,
        source: VM | str = "ubuntu",
        *,
        replicas: int = 1,
        namespace: str = "default",
        vcpu: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        network: str | None = None,
    ) -> Pool:
        """Has `replicas` VMs booted ahead of demand, of what `source` shows now; see `fork` for the rest.

        :param namespace: in which the pool's name is unique.
        :raises NotFound: no such source.
        :raises AlreadyExists: the name is taken.
        """
        call = pools.create_pool(
            name, source.id if isinstance(source, VM) else source, namespace=namespace, replicas=replicas,
            vcpu=vcpu, memory_mib=memory_mib, disk_mib=disk_mib, network=network,
        )  # fmt: skip
        return Pool(self._transport, self._transport.call(call, PoolRecord))

    def pool(self, name: str, namespace: str = "default") -> Pool:
        """:raises NotFound: there is no such pool."""
        return Pool(self._transport, self._transport.call(pools.get_pool(name, namespace), PoolRecord))

    def pools(self, namespace: str | None = None) -> builtins.list[Pool]:
        """Your warm pools, of one namespace or of all."""
        call = calls.get("/v1/warm-pools", namespace=namespace)
        return [Pool(self._transport, record) for record in (self._transport.call(call, PoolList)).pools]

    @property
    def secrets(self) -> Secrets:
        """Values that rules of policies name: `set`, `list`, `delete`."""
        return Secrets(self._transport)

    @property
    def filesystems(self) -> Filesystems:
        """Volumes that outlive VMs: `create`, `get`, `list`, `delete`. `vm.mounts` has them mounted."""
        return Filesystems(self._transport)

    def import_vm(self, file: LocalFile, name: str | None = None, *, ttl: float | None = None) -> VM:
        """A VM of a file that `VM.export` has written. Never all in memory.

        :param file: a path, or an open binary file, which is read to its end.
        :param name: yours to choose, unique in your organisation.
        :param ttl: seconds until it is deleted by itself; None: as your API key says.
        :raises BadRequest: it is no such file, or damaged.
        :raises Conflict: it holds what is above an image that the server does not have.
        """
        with read_from(file) as opened:
            record = self._transport.deliver(
                snapshots.import_vm(name, ttl), lambda: pieces_of(opened), None, VMRecord, again=False
            )
        return VM(self._transport, record)

    def import_image(self, name: str, path: str, *, replace: bool = False) -> Image:
        """Makes a golden of a root filesystem: a directory or a tar archive, at `path` on the server's machine.

        :raises AlreadyExists: there is one of this name, and it is not to be replaced.
        """
        return self._transport.call(calls.import_image(name, path, replace), Image)

    def whoami(self) -> Identity:
        """Whose key this client uses."""
        return self._transport.call(calls.get("/v1/whoami"), Identity)

    def health(self) -> Health:
        """How the server is, what it is preparing, and which layers of isolation are active."""
        return self._transport.call(calls.health(), Health)

    def api_keys(self) -> builtins.list[ApiKey]:
        """The API keys of your organisation, newest first, without their secrets."""
        return (self._transport.call(calls.get("/v1/api-keys"), KeyList)).api_keys

    def create_api_key(
        self,
        name: str | None = None,
        *,
        ttl_default: float | None = None,
        ttl_most: float | None = None,
        expires_in: float | None = None,
    ) -> ApiKey:
        """A new API key; only this answer holds the secret, as `key`.

        :param ttl_default: seconds that VMs made with it live, unless they are told otherwise.
        :param ttl_most: … at most, whatever they are told. Your own key's bounds hold for the new one too.
        :param expires_in: seconds until the key is nobody's.
        """
        return self._transport.call(calls.create_key(name, ttl_default, ttl_most, expires_in), ApiKey)

    def revoke_api_key(self, key_id: str) -> None:
        """:raises NotFound: there is no such key."""
        self._transport.call(calls.revoke_key(key_id), Anything)

    def storage(self) -> StorageUsage:
        """How much of the disk each VM takes, those with the most of their own first; only the local server's own key
        may ask."""
        return self._transport.call(calls.show_storage(), StorageUsage)

    def verify_storage(self) -> StorageReport:
        """Looks through all layers; only the local server's own key may."""
        return self._transport.call(calls.verify_storage(), StorageReport)

    def collect_storage(self, *, dry_run: bool = False) -> StorageGarbage:
        """Removes layers that nothing refers to, such as a crash may leave; only the local server's own key may.

        :param dry_run: only say what would go.
        """
        return self._transport.call(calls.collect_storage(dry_run), StorageGarbage)

    def down(self) -> None:
        """Parks every VM and ends the server; only the local server's own key may."""
        self._transport.call(calls.down(), Anything)

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Boxwood:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"
