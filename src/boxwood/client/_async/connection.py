"""One kept connection to a plain http server, awaitable. Written by hand: the counterpart of ../_sync/connection.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from boxwood.client.http1 import BadAnswer, Origin, Reply

BLOCK = 1 << 18  # bytes that nobody has taken, above which no more are read


class AsyncConnection(asyncio.Protocol):
    """`usable`: may it carry another request? One at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._done: asyncio.Future[None] | None = None
        self._patience: asyncio.Timeout | None = None
        self._timeout = 0.0
        self._flowing: Reply | None = None  # that is read bit by bit
        self._broken: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None  # what was sent is still on its way

    @classmethod
    async def open(cls, origin: Origin, timeout: float) -> AsyncConnection:
        """:raises OSError: nobody there."""
        async with asyncio.timeout(timeout):
            _, connection = await asyncio.get_running_loop().create_connection(cls, origin.host, origin.port)
        return connection

    @property
    def usable(self) -> bool:
        """Not if the server has closed it, or said something unasked, or if it belongs to an earlier event loop."""
        ours = self._transport is not None and self._loop is asyncio.get_running_loop()
        return ours and self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes, timeout: float) -> Reply:
        """:raises TimeoutError: nothing came for `timeout` seconds.
        :raises OSError, BadAnswer: the connection broke.
        """
        assert self._transport is not None
        self._reply = reply = Reply()
        self._done = self._loop.create_future()
        self._timeout = timeout
        try:
            async with asyncio.timeout(timeout) as self._patience:
                self._transport.write(request)
                await self._done
        except BaseException:
            self.abort()
            raise
        finally:
            self._reply = self._done = self._patience = None
        if not reply.keep:
            await self.aclose()
        return reply

    async def deliver(self, head: bytes, pieces: AsyncIterator[bytes], timeout: float) -> Reply:
        """A request whose body comes in pieces. A server that answers before it has all of them wants no more."""
        assert self._transport is not None
        self._reply = reply = Reply()
        self._done = done = self._loop.create_future()
        self._timeout = timeout
        whole = False
        try:
            self._transport.write(head)
            async for piece in pieces:
                if done.done():
                    break
                self._transport.write(piece)
                await self._drained(done, timeout)
            else:
                whole = True
            async with asyncio.timeout(timeout) as self._patience:
                await done
        except BaseException:
            self.abort()
            raise
        finally:
            self._reply = self._done = self._patience = None
        if not whole or not reply.keep:
            await self.aclose()
        return reply

    async def _drained(self, done: asyncio.Future[None], timeout: float) -> None:
        """Until there is room for more, or an answer."""
        if self._room is not None and not self._room.done():
            async with asyncio.timeout(timeout):
                await asyncio.wait((self._room, done), return_when=asyncio.FIRST_COMPLETED)

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def begin(self, request: bytes, timeout: float) -> Reply:
        """The answer up to the end of its head; its body comes with `more`. Errors as of `exchange`."""
        assert self._transport is not None
        self._flowing, self._broken = Reply(), None
        self._transport.write(request)
        while not self._flowing.headed:
            await self._hear(timeout)
        return self._flowing

    async def more(self, timeout: float) -> bytes:
        """What comes next of the body that was begun; nothing: that was all, and the connection may carry another
        request if it is `usable`. Errors as of `exchange`."""
        reply = self._flowing
        assert reply is not None
        while not reply.held and not reply.complete:
            await self._hear(timeout)
        data = reply.take()
        if self._transport is not None:
            self._transport.resume_reading()
        if not data:
            self._flowing = None
            if not reply.keep:
                await self.aclose()
        return data

    async def _hear(self, timeout: float) -> None:
        """Until something has come."""
        if self._broken is None:
            self._news = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._news
            except BaseException:
                self.abort()
                raise
            finally:
                self._news = None
        if self._broken is not None:
            self.abort()
            raise self._broken

    async def aclose(self) -> None:
        if self._transport is not None and self._loop is asyncio.get_running_loop():
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._flowing is not None:
            self._flow(self._flowing, data)
            return
        if self._reply is None or self._done is None or self._done.done():
            self.abort()  # nobody asked
            return
        if self._patience is not None:
            self._patience.reschedule(self._loop.time() + self._timeout)
        try:
            if self._reply.feed(data):
                self._done.set_result(None)
        except BadAnswer as error:
            self._done.set_exception(error)

    def _flow(self, reply: Reply, data: bytes) -> None:
        try:
            reply.feed(data)
        except BadAnswer as error:
            self._broken = error
            self.abort()  # what came before can be read; another request would be answered by what follows
        if reply.held > BLOCK and self._transport is not None:
            self._transport.pause_reading()
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._flowing is not None:
            try:
                self._flowing.end()
            except BadAnswer as why:
                self._broken = error or why
            self._tell()
            return
        if self._reply is None or self._done is None or self._done.done():
            return
        try:
            if error is not None:
                raise error
            self._reply.end()
            self._done.set_result(None)
        except (OSError, BadAnswer) as why:
            self._done.set_exception(why)
