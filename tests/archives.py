"""Tar archives of plain files."""

from __future__ import annotations

import io
import tarfile


def archive(**members: bytes) -> bytes:
    """Names (`**{"a/b": …}`) and contents."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()
