"""What one request has told of secrets, and stars instead of them wherever the answer says them again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from boxwood.engine.proxy.channel import Broken
from boxwood.engine.proxy.message import Headers
from boxwood.engine.proxy.redaction import Hidden, Redaction, joined, parted, starred
from boxwood.engine.proxy.standing import Standing

MOST_CHANGES = 16  # of a VM's secrets, over which an answer goes on: what was sent is remembered until its end


class Stars:
    """`hold`: so many bytes more, or fewer, are in memory; is there room for them?"""

    def __init__(self, standing: Standing, hold: Callable[[int], bool]) -> None:
        self.standing = standing
        self.hold = hold
        self._used: dict[int, tuple[Hidden, ...]] = {}  # what was hidden when it used a secret, after so many changes

    def secret(self, name: str) -> str | None:
        """To be sent: hidden from now on, whatever changes."""
        self._used[self.standing.changes] = self.standing.hidden
        return self.standing.secret(name)

    @property
    def are_too_old(self) -> bool:
        """Has too much changed since a secret was sent?"""
        return self.standing.changes - min(self._used, default=self.standing.changes) > MOST_CHANGES

    @property
    def hidden(self) -> tuple[Hidden, ...]:
        """What holds now, and what was sent: it may have changed under way."""
        now = self.standing.hidden
        if all(hidden is now for hidden in self._used.values()):
            return now
        return tuple(dict.fromkeys(one for hidden in (*self._used.values(), now) for one in hidden))

    def text(self, text: str) -> str:
        return starred(self.hidden, text.encode(errors="replace")).decode(errors="replace")

    async def headers(self, headers: Headers) -> Headers:
        """Broken."""
        body = Body(self)
        return parted(await body.feed(joined(headers)) + body.end(), headers)


class Body:
    """Of an answer, or of a message of a WebSocket (frames.py), in pieces: as shown."""

    def __init__(self, stars: Stars) -> None:
        self._stars = stars
        self._redaction = Redaction(stars.hidden)

    async def feed(self, data: bytes) -> bytes:
        """With what is to be hidden by now. Broken: too much waits for what may be a secret."""
        redaction, stars = self._redaction, self._stars
        redaction.hide(stars.hidden)
        if redaction.is_idle:
            return data
        shown = []
        for portion in redaction.portions(data):
            waiting = redaction.waiting
            async with stars.standing.turn:
                shown.append(redaction.feed(portion))
                await asyncio.sleep(0)  # others' turn: a server may send pieces of a byte, to many streams of one VM
            if not stars.hold(redaction.waiting - waiting):
                raise Broken("answers of this VM hold too much that may be a secret's beginning")
        return b"".join(shown)

    def end(self) -> bytes:
        """What waits, which is held no longer."""
        self._stars.hold(-self._redaction.waiting)
        return self._redaction.end()
