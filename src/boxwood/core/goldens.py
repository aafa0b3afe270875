"""Goldens: the public VMs of `ArkerHQ` that others fork from. Immutable, never booted: names for image layers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from boxwood.core import clock, words
from boxwood.core.access import Access
from boxwood.core.config import Config
from boxwood.core.errors import AlreadyExists, BadRequest, Unavailable
from boxwood.core.ids import new_id
from boxwood.core.layers import Layers
from boxwood.core.model import PUBLIC_ORG, VM, ForkRequest
from boxwood.core.refusals import clean
from boxwood.images import host, rootfs
from boxwood.images.shelf import ImageError
from boxwood.store import layers as layer_rows
from boxwood.store import vms as rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

IMAGE_CHARACTERS = 256
log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # phase, how much of it is done, of how much; called in another thread

# Names that published clients know (wire 1.5); until there are real images all are the host's.
HOST_NAMES = (
    "arkuntu",
    "ubuntu",
    "ubuntu-small",
    "ubuntu-nodisk",
    "ubuntu-nonet-nodisk",
    "ubuntu-full",
    "ubuntu-full-32",
    "ubuntu-py-repl",
    "ubuntu-js-repl",
    "ubuntu-docker",
    "ubuntu-chromium",
    "ubuntu-servo",
    "ubuntu-servo-js-repl",
    "ubuntu-chromium-js-repl",
    "ubuntu-coding",
)


class UnknownImage(BadRequest):
    def __init__(self, image: str) -> None:
        super().__init__(
            f"Unknown image '{image}': import it with `boxwood image import NAME PATH`, and add "
            f"'{image}' = 'NAME' to [image_names] in the server's configuration"
        )


class Goldens:
    def __init__(self, database: Database, access: Access, layers: Layers, config: Config) -> None:
        self._database = database
        self._access = access
        self._layers = layers
        self._config = config
        self._ready = False

    @property
    def ready(self) -> bool:
        """Can the names of the host golden be forked yet?"""
        return self._ready

    def look(self) -> None:
        """At the start: is the image of an earlier start still there?"""
        row = rows.by_name(self._database.near, PUBLIC_ORG, HOST_NAMES[0])
        self._ready = row is not None and (self._config.images / row.base / "upper").is_dir()

    def check(self, source_name: str | None) -> None:
        """Unavailable as long as this name stands for an image that is still being made."""
        if not self._ready and source_name in HOST_NAMES:
            raise Unavailable("the image of this host is still being made: try again", retry_after=2)

    def source(self, image: str) -> ForkRequest:
        """What is to be forked for the name of a container image: what `image_names` of the configuration says that it
        stands for, or the golden of that name. UnknownImage, Unavailable (it is still being made)."""
        if len(image) > IMAGE_CHARACTERS or not image.isascii() or not image.isprintable():
            raise BadRequest(f"image: 1 to {IMAGE_CHARACTERS} printable ASCII characters")
        golden = self._config.image_names.get(image, image)
        self.check(golden)
        row = rows.by_name(self._database.near, PUBLIC_ORG, golden)
        if row is None:  # a VM of the caller's own is no image
            raise UnknownImage(image)
        return ForkRequest(source_id=row.id)

    async def list(self) -> tuple[VM, ...]:
        """All goldens, by name."""
        conditions, params = ["v.org_id = :org", "v.origin IS NOT NULL"], {"org": PUBLIC_ORG}
        found = await self._database.read(lambda connection: rows.page(connection, conditions, params, -1))
        return tuple(self._access.vm(row, []) for row in sorted(found, key=lambda row: row.name or ""))

    async def ensure_host(self, progress: Progress | None = None) -> None:
        """Make the image of this host if there is none or the host has changed, and let the public names resolve to
        it. Long the first time; call it beside serving: forks of a golden are refused with Unavailable until then.
        `images.shelf.ImageError` if it cannot be made."""
        share = self._config.share_client_config
        image = await asyncio.to_thread(host.ensure, self._config.images, progress, share_client_config=share)
        for note in image.notes:
            log.info("host image: %s", clean(note))

        def name_them(connection: sqlite3.Connection) -> set[str]:
            layer_rows.insert_image(connection, image.layer_id)
            return {old for name in HOST_NAMES for old in _point(connection, name, image.layer_id, "host")}

        await self._database.write(name_them)
        self._ready = True

    async def import_rootfs(
        self, name: str, path: Path, progress: Progress | None = None, *, replace: bool = False
    ) -> VM:
        """Make a golden from a root file system: a directory or a tar archive. BadRequest (name, what is no root file
        system), AlreadyExists (`replace` points the name at the new image; VMs made from the old one stay)."""
        words.name(name)
        if not replace and rows.by_name(self._database.near, PUBLIC_ORG, name) is not None:
            raise _taken(name)
        try:
            image = await asyncio.to_thread(rootfs.import_rootfs, self._config.images, path, progress)
        except ImageError as error:
            raise BadRequest(str(error)) from error

        def name_it(connection: sqlite3.Connection) -> VMRow:
            layer_rows.insert_image(connection, image.layer_id)
            if not replace and rows.by_name(connection, PUBLIC_ORG, name) is not None:
                raise _taken(name)
            _point(connection, name, image.layer_id, "import")
            row = rows.by_name(connection, PUBLIC_ORG, name)
            assert row is not None
            return row

        return self._access.vm(await self._database.write(name_it), [])


def _point(connection: sqlite3.Connection, name: str, layer_id: str, origin: str) -> list[str]:
    """Let a name stand for an image. The host's image does not take back what was imported. Returns the old base."""
    row = rows.by_name(connection, PUBLIC_ORG, name)
    if row is None:
        rows.insert(connection, _golden(name, layer_id, origin))
        return []
    if row.base == layer_id or (origin == "host" and row.origin != "host"):
        return []
    rows.set_base(connection, row.id, layer_id, origin)
    return [row.base]


def _golden(name: str, layer_id: str, origin: str) -> VMRow:
    return VMRow(
        id=new_id(),
        org_id=PUBLIC_ORG,
        name=name,
        description=None,
        public=True,
        immutable=True,
        base=layer_id,
        top=new_id(),
        written=False,
        box_base=None,
        vcpu=None,
        memory_mib=None,
        disk_mib=None,
        network=None,
        root_source_id=None,
        root_source_name=None,
        origin=origin,
        created_at=clock.now(),
        last_active_at=None,
    )


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists("vm", f"there is a golden named {name} already: give replace to point it at another image")
