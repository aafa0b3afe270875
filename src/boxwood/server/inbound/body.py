"""The body of a request for a port: passed on as it comes, or read whole where a rule has to see it.

What is read whole is bounded for each, for each VM and for all, and in time: whoever opens a port to the world lets
the world send slowly.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from boxwood.core.errors import BadRequest, PayloadTooLarge, Unavailable, Unsupported
from boxwood.core.shares import Shares
from boxwood.engine.policies import Sought
from boxwood.server.inbound.door import Visit

MOST = 1 << 20  # bytes; as of one that goes out
OF_VM, OF_ALL = 16 << 20, 128 << 20  # at once
SECONDS = 30.0  # for all of one
_DECODED_BY_NOBODY = frozenset((b"", b"identity"))


class Encoded(Unsupported):
    """It would have to be decoded to be judged."""


class TooSlow(BadRequest):
    """It has not come in time."""


class Held:
    """What one request has in memory, until `close`. Twice is once."""

    def __init__(self, shares: Shares, vm_id: str) -> None:
        self._shares = shares
        self._vm_id = vm_id
        self._bytes = 0

    def take(self, size: int) -> None:
        """Unavailable."""
        if not self._shares.take(self._vm_id, size):
            raise Unavailable("rules of this VM need whole bodies, and too many are on their way: try again")
        self._bytes += size

    def close(self) -> None:
        self._shares.give(self._vm_id, self._bytes)
        self._bytes = 0


class Body:
    """`receive`: the request's; None of one that has no body. BadRequest: its length can be read in two ways."""

    def __init__(self, visit: Visit, held: Held, receive: Receive | None) -> None:
        lengths = [value for name, value in visit.raw if name == b"content-length"] if receive else []
        self.chunked = receive is not None and any(name == b"transfer-encoding" for name, _ in visit.raw)
        if len(lengths) > 1 or (lengths and self.chunked) or not all(value.isdigit() for value in lengths):
            raise BadRequest("the request's length can be read in two ways")
        self.length = lengths[0] if lengths else None  # as it was announced
        self._coded = [value.strip().lower() for name, value in visit.raw if name == b"content-encoding"]
        self._held = held
        self._receive = receive
        self._read = None if visit.has_body else Sought()

    async def whole(self, rule: str) -> Sought:
        """`rule`: for which it is read. Encoded, PayloadTooLarge, Unavailable, TooSlow,
        ConnectionResetError."""
        if self._read is None:
            if not _DECODED_BY_NOBODY.issuperset(self._coded):
                raise Encoded(f"the rule {rule} of this VM needs to see bodies: send this one without a coding")
            try:
                async with asyncio.timeout(SECONDS):
                    self._read = await self._all(rule)
            except TimeoutError:
                text = f"the rule {rule} of this VM needs the whole body, which has not come within {SECONDS:g} s"
                raise TooSlow(text) from None
        return self._read

    async def _all(self, rule: str) -> Sought:
        too_long = PayloadTooLarge(f"the rule {rule} of this VM needs the whole body: at most {MOST} bytes", MOST)
        if self.length is not None and (len(self.length) > 19 or int(self.length) > MOST):
            raise too_long
        assert self._receive is not None
        found, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ConnectionResetError("the client has gone")
            data, more = message.get("body", b""), message.get("more_body", False)
            if len(found) + len(data) > MOST:
                raise too_long
            self._held.take(len(data))
            found += data
        return Sought(found)

    @property
    def read(self) -> bytes | None:
        """All of it; None: nobody has read it."""
        return self._read
