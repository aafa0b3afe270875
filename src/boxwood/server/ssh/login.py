"""One SSH connection: who it is, and what it may ask for. The user's name is the VM's id or name."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncssh

from boxwood.core.core import Core
from boxwood.core.errors import CoreError
from boxwood.core.model import Caller

MOST, MOST_OF_ADDRESS, MOST_STRANGERS = 256, 64, 32  # connections at once; of them, such as have not logged in
ATTEMPTS = 8  # keys that one connection may show
FAILED, FAILED_SECONDS = 30, 60.0  # logins of one address that fail, in so long
KEPT = 4096  # addresses
CHANNELS = 16  # of one connection
PIECE = 64 << 10
LAST_SECONDS = 10.0  # in which what comes last must have been taken
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", ""})  # names that clients say


class Doorkeeper:
    """Counts connections and failed logins, of an address; of IPv6 of 64 bits, for who has one of these has all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.strangers: Counter[str] = Counter()  # by place, as all of this
        self.by_address: Counter[str] = Counter()
        self._failed: dict[str, deque[float]] = {}

    def full(self, address: str) -> bool:
        place = _place(address)
        if self.by_address.total() >= MOST or self.by_address[place] >= MOST_OF_ADDRESS:
            return True
        if self.strangers.total() >= MOST_STRANGERS or self.strangers[place] >= MOST_STRANGERS // 2:
            return True  # who says nothing takes half of the room at most: others can still log in
        return self.failed_often(address)

    def count(self, address: str, *, more: int) -> None:
        """There are so many more connections, or less."""
        _add(self.by_address, _place(address), more)

    def count_strangers(self, address: str, *, more: int) -> None:
        """So many more, or less, have not logged in."""
        _add(self.strangers, _place(address), more)

    def failed_often(self, address: str) -> bool:
        times = self._failed.get(_place(address))
        while times and times[0] <= self._clock() - FAILED_SECONDS:
            times.popleft()
        return times is not None and len(times) >= FAILED

    def failed(self, address: str) -> None:
        place = _place(address)
        if len(self._failed) >= KEPT and place not in self._failed:
            del self._failed[next(iter(self._failed))]
        self._failed.setdefault(place, deque(maxlen=FAILED)).append(self._clock())


def _add(counted: Counter[str], place: str, more: int) -> None:
    counted[place] += more
    if not counted[place]:
        del counted[place]


def _place(address: str) -> str:
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))


class Login(asyncssh.SSHServer):
    """`on_open`, `on_close`: hear of it once somebody is logged in, and when that is over. `channel`: makes one for
    whatever is asked for there."""

    def __init__(
        self,
        core: Core,
        keeper: Doorkeeper,
        on_open: Callable[[Login], None],
        on_close: Callable[[Login], None],
        channel: Callable[[], asyncssh.SSHServerProcess[bytes]],
    ) -> None:
        self._channel = channel
        self._core = core
        self._keeper = keeper
        self._on_open = on_open
        self._on_close = on_close
        self._connection: asyncssh.SSHServerConnection | None = None
        self._counted = self._stranger = False
        self._tried = 0
        self.address = ""
        self.vm = ""
        self.fingerprint = ""
        self.caller: Caller | None = None
        self.channels = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        conn.set_extra_info(login=self)
        peer = conn.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if self._keeper.full(self.address):
            conn.abort()
            return
        self._counted = self._stranger = True
        self._keeper.count(self.address, more=1)
        self._keeper.count_strangers(self.address, more=1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._counted:
            self._keeper.count(self.address, more=-1)
        if self._stranger:
            self._keeper.count_strangers(self.address, more=-1)
            self._keeper.failed(self.address)
        self._counted = self._stranger = False
        self._on_close(self)

    def end(self) -> None:
        if self._connection is not None:
            self._connection.close()

    # --- who it is

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return False

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Asked once for whether a key would do, and once more when the client has shown that it has it."""
        self._tried += 1
        if self._tried > ATTEMPTS or self._keeper.failed_often(self.address):
            if self._connection is not None:
                self._connection.abort()
            return False
        fingerprint = key.get_fingerprint("sha256")
        found = self._core.logins.find(username, fingerprint, self.address)
        if found is None:
            self._keeper.failed(self.address)
            return False
        self.vm, self.caller = found
        self.fingerprint = fingerprint
        return True

    def auth_completed(self) -> None:
        if self._stranger:
            self._stranger = False
            self._keeper.count_strangers(self.address, more=-1)
        self._on_open(self)

    def session_requested(self) -> asyncssh.SSHServerProcess[bytes]:
        return self._channel()

    # --- ports of the VM (ssh -L)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Callable[[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]], Awaitable[None]]:
        """To the VM's own loopback alone, under whatever name."""
        if dest_host.lower() not in _LOOPBACK:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "only ports of the VM itself are forwarded: say localhost"
            )
        if not self.enter():
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, f"at most {CHANNELS} channels")

        async def carry(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
            try:
                await self._carry(dest_port, reader, writer)
            finally:
                self.leave()
                writer.close()

        return carry

    def enter(self) -> bool:
        """One channel more, until `leave`."""
        if self.channels >= CHANNELS:
            return False
        self.channels += 1
        return True

    def leave(self) -> None:
        self.channels -= 1

    async def _carry(self, port: int, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        assert self.caller is not None
        try:
            connection = await self._core.ports.own(self.caller, self.vm, port)
        except CoreError:
            return
        try:
            inner_reader, inner_writer = await asyncio.open_connection(sock=connection.sock, limit=PIECE)
        except BaseException:
            connection.sock.close()
            connection.leave()
            raise
        inwards = asyncio.ensure_future(_inwards(reader, inner_writer))
        outwards = asyncio.ensure_future(_outwards(inner_reader, writer))
        closed = asyncio.ensure_future(writer.wait_closed())

        def lost(reason: str) -> None:
            for task in (inwards, outwards):
                task.cancel()

        connection.lost_hook = lost
        try:
            ends: set[asyncio.Future[Any]] = {asyncio.gather(inwards, outwards, return_exceptions=True), closed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({inwards}, timeout=LAST_SECONDS)  # what the client sent before it closed its channel
        finally:
            for task in (inwards, outwards, closed):
                task.cancel()
            await asyncio.gather(inwards, outwards, closed, return_exceptions=True)
            inner_writer.transport.abort()
            connection.leave()


async def _inwards(reader: asyncssh.SSHReader[bytes], writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _outwards(reader: asyncio.StreamReader, writer: asyncssh.SSHWriter[bytes]) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
