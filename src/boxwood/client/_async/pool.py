"""A warm pool: VMs that are booted ahead of demand."""

from __future__ import annotations

from boxwood.client import pools
from boxwood.client._async.transport import AsyncTransport
from boxwood.client._async.vm import AsyncVM
from boxwood.client.models import PoolRecord, VMRecord


class AsyncPool:
    """VMs of one kind that wait, booted and never used, to be claimed. `record`: as the server last told it."""

    def __init__(self, transport: AsyncTransport, record: PoolRecord) -> None:
        self._transport = transport
        self.record = record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def namespace(self) -> str:
        """In which the name is unique."""
        return self.record.namespace

    @property
    def ready(self) -> int:
        """VMs that could be claimed when the server last told."""
        return self.record.ready

    async def claim(
        self,
        name: str | None = None,
        *,
        description: str | None = None,
        ttl: float | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncVM:
        """A VM that nobody has used: one that waits, or if none does, a fork there and then. It is yours for good.

        :param name: yours to choose, unique in your organisation.
        :param ttl: seconds until it is deleted by itself; None: never.
        :param idempotency_key: the same key gives the same VM; without one, each call claims its own.
        :raises NotFound: there is no such pool.
        :raises AlreadyExists: the name is taken.
        """
        call = pools.claim(
            self.name, self.namespace, name=name, description=description, ttl=ttl, idempotency_key=idempotency_key
        )
        return AsyncVM(self._transport, await self._transport.call(call, VMRecord))

    async def scale(self, replicas: int) -> AsyncPool:
        """Lets `replicas` VMs wait from now on. Returns this pool."""
        call = pools.change_pool(self.name, self.namespace, replicas)
        self.record = await self._transport.call(call, PoolRecord)
        return self

    async def refresh(self) -> AsyncPool:
        """Asks the server again. Returns this pool."""
        self.record = await self._transport.call(pools.get_pool(self.name, self.namespace), PoolRecord)
        return self

    async def delete(self, *, vms: bool = False) -> None:
        """Removes the pool and what waits in it. VMs that were claimed from it stay, unless `vms`."""
        self.record = await self._transport.call(pools.delete_pool(self.name, self.namespace, vms), PoolRecord)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}: {self.ready} of {self.record.replicas} ready>"
