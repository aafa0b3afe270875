"""VMs: fork, look up, list, change, park, delete.

Wherever a `vm` is asked for, its id or its name will do. A name is looked up among the public ones first, then in the
caller's organisation; the source of a fork the other way round (wire 1.5). What is not there and what is not yours
are the same NotFound.
"""

from __future__ import annotations

from typing import Final

from boxwood.core.model import VM, Caller, ForkRequest, Page, Resources, VMFilter


class Unset:
    """The type of `UNSET`: a member that was not given, where None has a meaning of its own."""


UNSET: Final = Unset()


class VMs:
    async def fork(self, caller: Caller, request: ForkRequest, idempotency_key: str | None = None) -> VM:
        """A new VM that shows what its source shows now. Neither waits for nor harms what runs in the source.

        BadRequest (no source or several, a bad name), NotFound (source), Forbidden, AlreadyExists (name),
        InsufficientResources, ResourceBusy (more layers than can be stacked: they are being merged),
        IdempotencyConflict, Unavailable (the same key is still being worked on; the host image is still being made),
        CapacityUnavailable.
        """
        raise NotImplementedError

    async def get(self, caller: Caller, vm: str) -> VM:
        """A VM of the caller's or a public one, with its sessions. NotFound."""
        raise NotImplementedError

    async def list(
        self, caller: Caller, where: VMFilter | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[VM]:
        """Newest first. `where.org_id` None: the caller's own; of another organisation only public ones are shown.
        `limit`: 1 to 1000. BadRequest (cursor, limit)."""
        raise NotImplementedError

    async def count(self, caller: Caller, where: VMFilter | None = None) -> int:
        """How many VMs `list` would show in all."""
        raise NotImplementedError

    async def update(
        self,
        caller: Caller,
        vm: str,
        *,
        description: str | Unset | None = UNSET,
        name: str | Unset | None = UNSET,
        immutable: bool | Unset = UNSET,
        resources: Resources | Unset = UNSET,
    ) -> VM:
        """Change what is given. `immutable` can only become true, and only alone; resources count from the next box
        on, for which an idle one is parked. BadRequest, NotFound, Forbidden, AlreadyExists, InvalidState (immutable),
        ResourceBusy (something runs)."""
        raise NotImplementedError

    async def delete(self, caller: Caller, vm: str) -> None:
        """End what runs (as cancelled), put the box down, forget the VM; its name is free at once.
        NotFound, also the second time; Forbidden."""
        raise NotImplementedError

    async def park(self, caller: Caller, vm: str) -> None:
        """Put the box of an idle VM down, if it has one; the next use boots another. NotFound, ResourceBusy."""
        raise NotImplementedError
