"""What a pool's VMs are forked from: an image with directories that are there before a VM is claimed, which costs
nothing then.

    async with templates.prepared(core, caller, image, ("/workspace",)) as vm_id:
        await core.pools.create(caller, PoolRequest(…, source_id=vm_id, about=templates.noted(about, ("/workspace",))))
    templates.has(pool, ("/workspace",))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from boxwood.core.core import Core
from boxwood.core.model import Caller, ForkRequest, Pool
from boxwood.dialects.arl import steps

LEASE_SECONDS = 600.0  # a VM whose server dies meanwhile is deleted after so long
_MEMBER = "directories"  # of a pool's `about`


@asynccontextmanager
async def prepared(core: Core, caller: Caller, image: ForkRequest, directories: Collection[str]) -> AsyncIterator[str]:
    """A VM with these directories, for as long as it takes to make a pool of it. What a fork and
    `steps.make_directory` raise."""
    made = await core.vms.fork(caller, replace(image, ttl=LEASE_SECONDS))
    try:
        await steps.make_directory(core, caller, made.vm_id, *directories)
        yield made.vm_id
    finally:
        core.vms.discard(caller, made.vm_id)


def noted(about: Mapping[str, Any], directories: Collection[str]) -> dict[str, Any]:
    """`about`, with which directories are there."""
    return {**about, _MEMBER: sorted(directories)}


def of_image(pool: Pool) -> bool:
    """Was it made so? Then an image and these directories are all that its VMs have."""
    return _MEMBER in pool.about


def has(pool: Pool, directories: Collection[str]) -> bool:
    """Are they there in the pool's VMs?"""
    return set(directories) <= set(pool.about.get(_MEMBER, ()))
