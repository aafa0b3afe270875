"""The limits of boxes: one cgroup per box, `boxwood-<instance>/<box>`, in version 2 or in each hierarchy of version 1.

The groups lie below the root of the hierarchy, so that the next zygote finds what one that was killed left behind. A
limit that this host cannot hold is refused, not forgotten.
"""
