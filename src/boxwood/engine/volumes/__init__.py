"""Volumes: directories that outlive VMs, mounted in live boxes, of several VMs at once.

`api.py` is what the core knows, `host.py` the server's side. In the zygote: `attachments.py` (which box has what),
`entering.py` (the process that goes into a box's mount namespace), `kinds.py` (what they lie on).

A volume lies in LAYERS/volumes/ULID as a layer does in LAYERS/ULID, so that all that is known of layers holds for it:
owned as inside a VM and seen through each box's own map, limited by a project or by lying in a file of its own.
"""

PLACE = "volumes"  # below the directory of layers, on the same file system
