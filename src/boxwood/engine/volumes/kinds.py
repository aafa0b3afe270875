"""What volumes lie on: agents and server take files of these file systems for files of a volume."""

from __future__ import annotations

from boxwood.engine.kernel import EXT4_MAGIC, OVERLAYFS_MAGIC, XFS_MAGIC

_BTRFS, _F2FS, _ZFS = 0x9123683E, 0xF2F52010, 0x2FC12FC1
# Not tmpfs, whose pages are memory: that is what /dev/shm and /run of every box are.
DISKS = frozenset({EXT4_MAGIC, XFS_MAGIC, _BTRFS, _F2FS, _ZFS, OVERLAYFS_MAGIC})
