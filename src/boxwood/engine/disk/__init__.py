"""How much a VM may keep above its image, on hosts without project quotas: each top is an ext4 file system in a file.

`files.py` makes them (in the server), `loop.py` and `image.py` attach, mount and bound them (in the zygote, in its
jobs, and in what becomes a box).
"""

BLOCK = 4096  # bytes of a block of these file systems
MIB = 1 << 20
IMAGE = "disk.img"  # a layer that has this file has its `upper` and `work` in it
