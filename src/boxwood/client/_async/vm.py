"""A VM: run commands in it, move its files, fork it, delete it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from boxwood.client import calls
from boxwood.client._async import files
from boxwood.client._async.following import follow
from boxwood.client._async.run import AsyncRun
from boxwood.client._async.session import AsyncSession
from boxwood.client._async.transport import AsyncTransport
from boxwood.client.errors import BoxwoodError, NotFound
from boxwood.client.events import Follower, RunEvent
from boxwood.client.fields import VMFields
from boxwood.client.models import (
    Anything,
    Manifest,
    NetworkUsage,
    RunPage,
    RunRecord,
    SessionPage,
    SessionRecord,
    VMRecord,
)

if TYPE_CHECKING:
    from boxwood.client._async.pty import AsyncPty


class AsyncVM(VMFields):
    """A computer. As a context manager it is deleted at the end."""

    def __init__(self, transport: AsyncTransport, record: VMRecord) -> None:
        self._transport = transport
        self._record = record

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: str | bytes | None = None,
        stdin_open: bool = False,
        background: bool = False,
        session: AsyncSession | str | int | None = None,
        check: bool = False,
        idempotency_key: str | None = None,
    ) -> AsyncRun:
        """Runs a command and waits for its end, however long that takes.

        The command is text for the shell, or a sequence of arguments, which are quoted. It runs in the VM's default
        session, or in `session` (a session, its id, or an index, which is created if need be), and `cd`, `export` and
        variables last until the next run there. With `env`, `cwd` or `user` it runs beside the session's shell and
        changes nothing in it.

        :param timeout: seconds until the server kills all that the run started; None: never.
        :param stdin: what the command reads, then end of file.
        :param stdin_open: `stdin` is only the beginning; only with `background`: see `write_stdin` of the run.
        :param background: return as soon as it is started; see `wait()` of the run.
        :param check: raise `CommandFailed` unless the exit code is 0.
        :param idempotency_key: the same key gives the same run, so that the request may be repeated.
        """
        call = calls.create_run(
            self.id, command, timeout=timeout, env=env, cwd=cwd, user=user, stdin=stdin, stdin_open=stdin_open,
            background=background, session=session.id if isinstance(session, AsyncSession) else session,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        return await self._ended(call, background=background, check=check)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: str | bytes | None = None,
        stdin_open: bool = False,
        background: bool = False,
        check: bool = False,
        idempotency_key: str | None = None,
    ) -> AsyncRun:
        """Runs a program with arguments, without a shell and in no session: it neither sees nor changes what sessions
        have. The quickest way to run something, and any number of them run side by side.

        :param argv: the program, looked for along PATH, and its arguments. If it cannot be started the exit code is
            127 (there is none) or 126, and stderr says why.
        :param env: laid over the VM's environment; `cwd`: absolute, else /root; `user`: user, or user:group.

        The rest is as in `run`.
        """
        call = calls.execute(
            self.id, argv, timeout=timeout, env=env, cwd=cwd, user=user, stdin=stdin, stdin_open=stdin_open,
            background=background, idempotency_key=idempotency_key,
        )  # fmt: skip
        return await self._ended(call, background=background, check=check)

    def run_stream(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: str | bytes | None = None,
        session: AsyncSession | str | int | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncGenerator[RunEvent, None]:
        """Runs a command and iterates over what happens, as it does: `RunStarted`, `RunOutput`s, `RunExited`.

        Goes on by itself after a broken connection or a restart of the server, without loss or repetition. Whoever
        stops iterating does not stop the run. The parameters are those of `run`.
        """
        call = calls.create_run(
            self.id, command, timeout=timeout, env=env, cwd=cwd, user=user, stdin=stdin, stdin_open=False,
            background=False, session=session.id if isinstance(session, AsyncSession) else session,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        return follow(self._transport, self.id, calls.streamed(call), Follower())

    async def _ended(self, call: calls.Call, *, background: bool, check: bool) -> AsyncRun:
        run = AsyncRun(self._transport, self.id, await self._transport.call(call, RunRecord))
        if background:
            return run
        if not run.ended:
            await run.wait()
        return run.check() if check else run

    async def fork(
        self,
        name: str | None = None,
        *,
        description: str | None = None,
        public: bool = False,
        vcpu: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        pids: int | None = None,
        nofile: int | None = None,
        network: str | None = None,
        ttl: float | None = None,
        command: str | Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncVM:
        """A new VM that has all that this one has; this one goes on. See `Boxwood.fork`."""
        call = calls.fork(
            self.id, name=name, description=description, public=public, vcpu=vcpu, memory_mib=memory_mib,
            disk_mib=disk_mib, pids=pids, nofile=nofile, network=network, ttl=ttl, command=command,
            idempotency_key=idempotency_key,
        )  # fmt: skip
        return AsyncVM(self._transport, await self._transport.call(call, VMRecord))

    async def write_file(self, path: str, data: str | bytes | IO[bytes], *, mode: int | None = None) -> None:
        """Writes a file of the VM, making the directories above it. It appears whole or not at all.

        :param path: absolute.
        :param data: bytes, text (as UTF-8), or an open binary file, which is read to its end.
        :param mode: permission bits, like 0o755; None: those of a new file, or of the one that is replaced.
        """
        await files.write(self._transport, self.id, path, data)
        if mode is not None:
            await self.run(["chmod", f"{mode & 0o7777:o}", "--", path], cwd="/", check=True)

    async def read_file(self, path: str) -> bytes:
        """The content of a regular file.

        :raises FileMissing: there is none; it is a FileNotFoundError too.
        """
        return await files.read(self._transport, self.id, path)

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a text file."""
        return (await self.read_file(path)).decode(encoding, errors)

    async def manifest(self, path: str) -> Manifest:
        """The regular files below a directory, with sizes, modes and SHA-256; empty if there is no such directory."""
        return await self._transport.call(calls.sync_manifest(self.id, path), Manifest)

    async def network(self) -> NetworkUsage:
        """What this VM has of the network, what it moved over it, and what it was refused."""
        return await self._transport.call(calls.get(calls.vm_path(self.id, "network")), NetworkUsage)

    async def session(self, *, env: Mapping[str, str] | None = None, cwd: str | None = None) -> AsyncSession:
        """A new session, with a shell of its own."""
        record = await self._transport.call(calls.create_session(self.id, env, cwd), SessionRecord)
        return AsyncSession(self, record)

    async def shell(
        self,
        command: str | Sequence[str] | None = None,
        *,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        term: str | None = None,
    ) -> AsyncPty:
        """A terminal with a login shell, or with `command`, in a session of its own: both end when it is closed.
        `Session.pty` gives one that outlives that.

        :param command: text for the shell, or a program and its arguments.
        :param columns: its size, as `rows`; each from 1 to 1000.
        :param env: of the session; `cwd`: absolute, else /root.
        :param term: what kind of terminal its programs see; None: xterm-256color.
        """
        session = await self.session(env=env, cwd=cwd)
        try:
            return await session._look(
                command, columns=columns, rows=rows, persist=False, idle_timeout=None, term=term, ours=True
            )  # fmt: skip
        except BaseException:
            with suppress(BoxwoodError):
                await session.delete()
            raise

    async def sessions(self) -> list[AsyncSession]:
        """All sessions of this VM."""
        found: list[AsyncSession] = []
        cursor = None
        while True:
            call = calls.get(calls.vm_path(self.id, "sessions"), cursor=cursor)
            page = await self._transport.call(call, SessionPage)
            found += [AsyncSession(self, record) for record in page.sessions]
            if (cursor := page.next_cursor) is None:
                return found

    async def get_session(self, session_id: str) -> AsyncSession:
        """:raises NotFound: this VM has no such session."""
        path = calls.vm_path(self.id, "sessions", session_id)
        return AsyncSession(self, await self._transport.call(calls.get(path), SessionRecord))

    async def runs(
        self,
        *,
        state: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        completed_after: datetime | None = None,
        page_size: int | None = None,
    ) -> AsyncIterator[AsyncRun]:
        """The runs of this VM, without their output (`refresh()` of one gets it), fetched page by page."""
        cursor = None
        while True:
            call = calls.get(
                calls.vm_path(self.id, "runs"), cursor=cursor, limit=page_size, state=state,
                started_after=started_after, started_before=started_before, completed_after=completed_after,
            )  # fmt: skip
            page = await self._transport.call(call, RunPage)
            for record in page.runs:
                yield AsyncRun(self._transport, self.id, record)
            if (cursor := page.next_cursor) is None:
                return

    async def get_run(self, run_id: str) -> AsyncRun:
        """A run and its output so far.

        :raises NotFound: this VM has no such run.
        """
        record = await self._transport.call(calls.get(calls.vm_path(self.id, "runs", run_id)), RunRecord)
        return AsyncRun(self._transport, self.id, record)

    async def update(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        vcpu: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        pids: int | None = None,
        nofile: int | None = None,
        ttl: float | None = None,
        immutable: bool = False,
    ) -> AsyncVM:
        """Changes what is given; an empty description clears it. Returns this VM.

        :param pids: processes and threads at once; `nofile`: open files of each process.
        :param ttl: seconds from now until it is deleted by itself.
        :param immutable: from now on it can be listed, forked and deleted, and nothing else; for good, and set alone.
        """
        sizes = {"vcpu": vcpu, "memory_mib": memory_mib, "disk_mib": disk_mib, "pids": pids, "nofile": nofile}
        given: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
        changes: dict[str, Any] = {"resources": given} if given else {}
        changes |= {} if name is None else {"name": name}
        changes |= {} if description is None else {"description": description}
        changes |= {} if ttl is None else {"ttl": ttl}
        changes |= {"immutable": True} if immutable else {}
        self._record = await self._transport.call(calls.update_vm(self.id, changes), VMRecord)
        return self

    async def refresh(self) -> AsyncVM:
        """Asks the server again. Returns this VM."""
        self._record = await self._transport.call(calls.get(calls.vm_path(self.id)), VMRecord)
        return self

    async def delete(self) -> None:
        """Deletes the VM. Its forks keep all that they have.

        :raises NotFound: it is gone already.
        """
        await self._transport.call(calls.delete(calls.vm_path(self.id)), Anything)

    async def __aenter__(self) -> AsyncVM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(NotFound):  # whoever deleted it meanwhile did what was wanted
            await self.delete()
