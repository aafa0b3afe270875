"""The core as a whole: opens the data directory, the store and the engine, hands out the nouns, closes all.

One `Core` per data directory: a second one is refused as long as the first holds DATA/lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from boxwood.core.access import Access
from boxwood.core.activity import Activity
from boxwood.core.admission import Admission
from boxwood.core.boxes import Boxes
from boxwood.core.ceilings import Ceilings
from boxwood.core.changes import Changes
from boxwood.core.commits import Commits
from boxwood.core.config import Config
from boxwood.core.disks import Disks
from boxwood.core.expiry import Expiry
from boxwood.core.exports import Exports
from boxwood.core.files import Files
from boxwood.core.filesystems import Filesystems
from boxwood.core.filework import FileWork
from boxwood.core.gates import Gates
from boxwood.core.goldens import Goldens
from boxwood.core.handles import Handles
from boxwood.core.held import Held
from boxwood.core.idempotency import Idempotency
from boxwood.core.keys import Keys
from boxwood.core.lanes import Lanes
from boxwood.core.layers import Layers
from boxwood.core.logins import Logins
from boxwood.core.logs import Logs
from boxwood.core.mounts import Mounts
from boxwood.core.networks import Networks
from boxwood.core.policies import Policies
from boxwood.core.pools import Pools
from boxwood.core.ports import Ports
from boxwood.core.ptys import Ptys
from boxwood.core.records import Records
from boxwood.core.refusals import of_store
from boxwood.core.retention import Retention
from boxwood.core.runs import Runs
from boxwood.core.secrets import Secrets
from boxwood.core.sessions import Sessions
from boxwood.core.signing import Signer
from boxwood.core.snapshots import Snapshots
from boxwood.core.states import States
from boxwood.core.tasks import Tasks
from boxwood.core.transfers import Transfers
from boxwood.core.upkeep import Upkeep
from boxwood.core.uploads import Uploads
from boxwood.core.views import Views
from boxwood.core.vms import VMs
from boxwood.engine.api import Box, Engine
from boxwood.store import keys as key_rows
from boxwood.store.database import Database


class DataInUse(Exception):
    """Another server has this data directory; the text says which."""


class Core:
    """`keys`, `vms`, `snapshots`, `states`, `commits`, `exports`, `pools`, `runs`, `sessions`, `ptys`, `files`,
    `filework`, `handles`, `filesystems`, `mounts`, `networks`, `ports`, `logins`,
    `goldens`, `policies`, `secrets`, `records`, `changes`, `activity`: see their classes."""

    def __init__(self, config: Config, engine: Engine, database: Database, keys: Keys, signer: Signer) -> None:
        spool = config.data / "spool"
        self.config = config
        self.engine = engine
        self.keys = keys
        self._database = database
        self._tasks = Tasks()
        self._admission = Admission(database, engine, config)
        disks = Disks(database, engine, config)
        self._limits = Held(config)
        ceilings = Ceilings(config, self._limits, disks)
        self._boxes = Boxes(database, engine, config, self._tasks, self._admission, disks, ceilings)
        self._lanes = Lanes(database, self._boxes, config, self._tasks, spool)
        self.layers = Layers(database, engine, config, self._tasks, spool)
        self.upkeep = Upkeep(database, engine, self.layers)
        disks.sealed_hook, disks.orphaned_hook = self.layers.sealed_with_limit, self.layers.orphaned
        self._uploads = Uploads(database, config.data / "uploads")
        self._retention = Retention(database, self._uploads, config, self._tasks, spool)
        self._logs = Logs(config.data / "log", config.log_bytes, self._tasks)
        self._lanes.recorded_hook = self._retention.ended
        access = Access(database, self._boxes, config.ports_domain)
        self.filesystems = Filesystems(database, engine, config, self._admission, signer, self._tasks)
        self.mounts = Mounts(database, engine, self._boxes, access, self.filesystems, signer, self._tasks)
        self.secrets = Secrets(database, config.data / "secrets.key")
        self.policies = Policies(database, engine, self._boxes, access, self.secrets, self._tasks)
        self._boxes.making.made_hook = self._fit_out
        self._boxes.environment_hook = self.policies.environment
        self._boxes.put_down_hook = self._box_gone
        self.changes = Changes()
        self.records = Records(database, self.changes, config, self._tasks)
        repeats = Idempotency(database)
        self.activity = Activity(database, access)
        self._retention.activity = self.activity
        self.networks = Networks(database, engine, self._boxes, access)
        self.ports = Ports(database, engine, self._boxes, access, keys, signer, self.policies.of)
        self.policies.changed_hooks.append(self.ports.judge_again)
        self.gates = Gates(engine, self.policies.secrets_of, self._tasks)
        self.logins = Logins(database, self._boxes, self.policies)
        self.goldens = Goldens(database, access, self.layers, config)
        self.sessions = Sessions(database, self._boxes, access, self._lanes, signer, self._tasks)
        self.ptys = Ptys(database, self._boxes, access, self.sessions, keys, signer, self._tasks)
        self.files = Files(self._boxes, access, self._uploads, signer, config, self._tasks)
        self.filework = FileWork(self._boxes, access, config)
        self.handles = Handles(self._boxes, access)
        self.transfers = Transfers(self._boxes, access, self.files, config, self._tasks)
        self.runs = Runs(
            database, self._boxes, access, self._lanes, self.sessions, repeats, signer, config, self._tasks, spool
        )
        self.vms = VMs(
            database, engine, self._boxes, access, self._admission, self._lanes, self.runs, self.layers, self._uploads,
            self.goldens, repeats, self.records, signer, config, self._tasks, disks, ceilings, self.policies,
        )  # fmt: skip
        self.vms.deleted_hooks += [self._retention.gone, self._admission.gone]
        self.snapshots = Snapshots(
            database, self._boxes, access, self._lanes, self.layers, disks, self.vms, self._tasks
        )
        views = Views(database, self.vms.forks, self.layers)
        self.states = States(engine, access, self.snapshots, views, self._tasks)
        self.commits = Commits(
            database, engine, self._boxes, access, self.snapshots, self.states, views, self.layers, disks, self._tasks
        )
        self.exports = Exports(
            database, engine, access, self.states, views, self.vms.forks, self.layers, disks, config, self._tasks
        )
        self.pools = Pools(
            database, self._boxes, access, self.vms.forks, self.vms, self.records, self.changes, repeats, config,
            self._tasks,
        )  # fmt: skip
        self._keys_expiry = Expiry(
            database, self._tasks, "API key", key_rows.expired, key_rows.next_expiry, keys.expire
        )
        keys.changed_hook = self._keys_expiry.changed
        self._held = contextlib.ExitStack()
        self._closed = False

    @classmethod
    async def open(cls, config: Config, engine: Engine) -> Core:
        """Open the data directory (made if need be), start the engine, take over the boxes that live and their runs.

        Raises `DataInUse` (another server), `store.database.SchemaTooNew` and `StoreError`,
        `engine.api.EngineUnavailable`.
        """
        with contextlib.ExitStack() as held:
            _make_directories(config.data)
            held.callback(os.close, _lock(config.data / "lock"))
            signer = Signer.of(config.data / "secret")
            database = await Database.open(config.data / "boxwood.db", of_store)
            try:
                keys = await Keys.open(database, config.data / "root.key")
                core = cls(config, engine, database, keys, signer)
                try:
                    await core._start()
                except BaseException:
                    await core._tasks.close()
                    raise
            except BaseException:
                await database.close()
                raise
            core._held = held.pop_all()
            return core

    async def _start(self) -> None:
        self.engine.account(self.networks.ended)
        live = await self.engine.start()
        try:
            await self._limits.learn(self.engine)
            adopted = await self._boxes.adopt(live)
            await self.policies.adopted(adopted.values())
            await self._lanes.recover(adopted)
            self.ptys.recover(adopted)
            await self.vms.suspend_again(adopted.values())
            await self.layers.sweep()
            await self.filesystems.sweep()
            await self._retention.sweep()
            self.goldens.look()
        except BaseException:
            await self.engine.close()
            raise
        self.layers.start()
        self.filesystems.start()
        self.mounts.recover(adopted)
        self._admission.start()
        self.records.start()
        self.pools.start()
        self.snapshots.start()
        self.vms.expiry.start()
        self.vms.suspensions.start()
        self._keys_expiry.start()
        self._retention.start()
        self._logs.start()

    async def _fit_out(self, vm_id: str, box: Box) -> None:
        """Its network is the VM's before anything else is."""
        await self.policies.fit_out(vm_id, box)
        await self.mounts.fit_out(vm_id, box)

    def _box_gone(self) -> None:
        self.layers.box_gone()
        self.filesystems.box_gone()

    async def close(self) -> None:
        """Let go of everything; boxes and their runs live on and are taken over by the next `open`. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._boxes.close()
        self._lanes.stop()
        await self._tasks.close()
        await self.engine.close()
        await self._lanes.close()
        self.activity.write()
        await self._database.close()
        self._held.close()

    async def shutdown(self) -> None:
        """Park every VM (runs end as failed), end the engine, then as `close`."""
        self._lanes.stop()
        self.pools.stop()
        await self._boxes.park_all()
        await self._lanes.recorded()
        await self.engine.shutdown()
        await self.close()


def _make_directories(data: Path) -> None:
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.chmod(0o700)
    for name in ("spool", "uploads", "log"):
        (data / name).mkdir(mode=0o700, exist_ok=True)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataInUse(f"{path.parent} is in use by another server: stop it, or give another data directory") from None
    return descriptor
