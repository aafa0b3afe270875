"""Warm pools under a crowd, and when the server dies in the middle of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from amounts import amount
from boxwood import AsyncBoxwood, BoxwoodError, Pool
from servers import PREPARED, Server, until

CLAIMS, POOL = amount((20, 6), (200, 50))
KILLED_AFTER, WAITING = amount((8, 5), (15, 10))
Make = Callable[..., Server]


def test_a_crowd(make_server: Make) -> None:
    """More claims at once than VMs wait: each gets one of its own that nobody has used, and the pool fills up again."""
    server = make_server(ready_boxes=0)
    seen: list[tuple[int, int, int]] = []
    over = threading.Event()

    def watch() -> None:
        with server.client() as box:
            while not over.is_set():
                one = box.pool("crowd").record
                seen.append((one.ready, one.starting, one.allocated))

    with server.client() as box:
        pool = box.create_pool("crowd", replicas=POOL)
        until(lambda: pool.refresh().ready == POOL)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            claimed = asyncio.run(_claim_all(server))
        finally:
            over.set()
            watcher.join()
        assert len(set(claimed)) == CLAIMS
        until(lambda: pool.refresh().ready == POOL and pool.record.starting == 0)
        assert pool.record.allocated == CLAIMS == len(list(box.list()))
        for ready, starting, allocated in seen:
            assert 0 <= ready + starting <= POOL and 0 <= allocated <= CLAIMS
        allocations = [allocated for _, _, allocated in seen]
        assert allocations == sorted(allocations)
        pool.delete(vms=True)
        assert list(box.list()) == []
    until(lambda: len(server.boxes()) <= PREPARED)
    until(lambda: not any((server.data / "layers").iterdir()))


async def _claim_all(server: Server) -> list[str]:
    async with AsyncBoxwood(url=server.url, api_key=server.key) as box:
        pool = await box.pool("crowd")
        vms = await asyncio.gather(*(pool.claim(f"crowd-{number}") for number in range(CLAIMS)))
        for vm in vms[::8]:  # a sample: each of the others would need a box
            run = await vm.run("ls -A /tmp; ls /root/mark; touch /root/mark /tmp/mark")
            assert run.stdout == "", "somebody has been here before"
        return [vm.id for vm in vms]


def test_the_server_dies_in_the_middle(make_server: Make) -> None:
    """Whatever was claimed is somebody's, whatever was not waits or is gone, and the numbers are true."""
    server = make_server(ready_boxes=0)
    claimed: set[str] = set()
    with server.client() as box:
        pool = box.create_pool("crowd", replicas=WAITING)
        until(lambda: pool.refresh().ready == WAITING)
    threads = [threading.Thread(target=_claim_until_killed, args=(server, claimed)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(claimed) >= KILLED_AFTER)
    server.kill9()
    for thread in threads:
        thread.join(60)
    server.start()
    with server.client() as box:
        pool = box.pool("crowd")
        until(lambda: pool.refresh().ready == WAITING and pool.record.starting == 0)
        there = {vm.id for vm in box.list()}
        assert claimed <= there, "an acknowledged claim was lost"
        assert pool.record.allocated == len(there)
        fresh = pool.claim()
        assert fresh.id not in there
        assert fresh.run("ls -A /tmp").stdout == ""
        pool.delete(vms=True)
        assert list(box.list()) == []
    until(lambda: len(server.boxes()) <= PREPARED)
    until(lambda: not any((server.data / "layers").iterdir()))


def _claim_until_killed(server: Server, claimed: set[str]) -> None:
    with server.client() as box:
        pool = Pool(box._transport, box.pool("crowd").record)
        try:
            while True:
                claimed.add(pool.claim().id)
        except BoxwoodError:
            return
