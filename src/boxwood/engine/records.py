"""What a helper in a box writes into the pipe that the server has given it: records, and a last one that says how it
went. Used on both sides; the server bounds and checks what it reads.

    u8 kind ('D' data, 'E' end), u32 length, that many bytes                                       (little-endian)
"""

from __future__ import annotations

import struct

HEAD = struct.Struct("<BI")
DATA, END = ord("D"), ord("E")
DATA_BYTES = 1 << 18  # of one record
END_BYTES = 1 << 16


def record(kind: int, payload: bytes) -> bytes:
    return HEAD.pack(kind, len(payload)) + payload
