"""A VM: run commands in it, move its files, fork it, delete it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from os import PathLike, fspath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from boxwood.client import calls, transfers
from boxwood.client._async import files, tree
from boxwood.client._async.filework import AsyncFiles
from boxwood.client._async.following import follow
from boxwood.client._async.policies import AsyncPolicies
from boxwood.client._async.ports import AsyncPorts
from boxwood.client._async.run import AsyncRun
from boxwood.client._async.session import AsyncSession
from boxwood.client._async.states import AsyncStates
from boxwood.client._async.transport import AsyncTransport
from boxwood.client._async.volumes import AsyncMounts
from boxwood.client.content import Content
from boxwood.client.errors import BoxwoodError, NotFound
from boxwood.client.events import Follower, RunEvent
from boxwood.client.ignore import Ignore, compiled
from boxwood.client.mirror import Cache, Progress, SyncReport
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

CHMOD_AT_ONCE = 500  # files per command line


class AsyncVM(AsyncStates, AsyncPorts):
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
        """Runs a command and iterates over what happens, as it does: `RunStarted`, `RunOutput`s, `RunExited`. In a
        Python context also `PythonContext`, `PythonResult`s and `PythonError`.

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
        durable: bool = False,
        policies: Mapping[str, Any] | None = None,
        command: str | Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncVM:
        """A new VM that has all that this one has; this one goes on. See `Boxwood.fork`."""
        call = calls.fork(
            self.id, name=name, description=description, public=public, vcpu=vcpu, memory_mib=memory_mib,
            disk_mib=disk_mib, pids=pids, nofile=nofile, network=network, ttl=ttl, durable=durable, policies=policies,
            command=command, idempotency_key=idempotency_key,
        )  # fmt: skip
        return AsyncVM(self._transport, await self._transport.call(call, VMRecord))

    @property
    def files(self) -> AsyncFiles:
        """What else can be done with its files: list, move, delete, search, watch, whole directories in and out."""
        return AsyncFiles(self._transport, self.id)

    async def write_file(self, path: str, data: Content, *, mode: int | None = None) -> None:
        """Writes a file of the VM, making the directories above it. It appears whole or not at all.

        :param path: absolute.
        :param data: bytes, text (as UTF-8), an open binary file, which is read to its end, or an iterable of pieces of
            bytes. Neither file nor pieces are held in memory.
        :param mode: permission bits, like 0o755; None: those of a new file, or of the one that is replaced.
        """
        if not await files.write(self._transport, self.id, path, data, mode):
            await self.run(["chmod", f"{(mode or 0) & 0o7777:o}", "--", path], cwd="/", check=True)

    async def read_file(self, path: str) -> bytes:
        """The content of a regular file.

        :raises FileMissing: there is none; it is a FileNotFoundError too.
        """
        return await files.read(self._transport, self.id, path)

    def read_stream(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The content of a regular file, piece by piece, or of its bytes `start` to `end`; goes on by itself after a
        broken connection.

        :raises BoxwoodError: with code `changed`: the connection broke, and the file is not what it was.
        """
        return files.stream(self._transport, self.id, path, start, end)

    async def sync_dir(
        self,
        local: str | PathLike[str],
        path: str,
        *,
        ignore: Iterable[str] | Ignore | None = None,
        cache: Cache | None = None,
        progress: Callable[[Progress], object] | None = None,
        everything: bool = False,
    ) -> SyncReport:
        """Brings the files of a directory here into one of the VM: those that are not there, or with other bytes.
        Nothing is deleted there; symbolic links and empty directories are left out.

        :param path: absolute.
        :param ignore: what is left out: patterns as in a .dockerignore, or a function that is given relative paths.
        :param cache: a dict that keeps what was learned of the files here; the next time only others are read.
        :param progress: called often, with how far it is.
        :param everything: send all, without asking the VM what it has.
        """
        ignored = compiled(ignore) if ignore is not None and not callable(ignore) else ignore
        report, programs = await tree.send(
            self._transport, self.id, fspath(local), path, ignored=ignored, cache=cache, progress=progress,
            everything=everything,
        )  # fmt: skip
        for at in range(0, len(programs), CHMOD_AT_ONCE):
            await self.run(["chmod", "+x", "--", *programs[at : at + CHMOD_AT_ONCE]], cwd="/", check=True)
        return report

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a text file."""
        return (await self.read_file(path)).decode(encoding, errors)

    async def manifest(self, path: str) -> Manifest:
        """The regular files below a directory, with sizes, modes and SHA-256; empty if there is no such directory."""
        return await self._transport.call(transfers.sync_manifest(self.id, path), Manifest)

    async def network(self) -> NetworkUsage:
        """What this VM has of the network, what it moved over it, and what it was refused."""
        return await self._transport.call(calls.get(calls.vm_path(self.id, "network")), NetworkUsage)

    @property
    def policies(self) -> AsyncPolicies:
        """What it may reach, and who may reach it: `get`, `update`, `set`."""
        return AsyncPolicies(self._transport, self.id)

    @property
    def mounts(self) -> AsyncMounts:
        """The filesystems that this VM has: `create`, `list`, `delete`."""
        return AsyncMounts(self._transport, self.id)

    async def session(self, *, env: Mapping[str, str] | None = None, cwd: str | None = None) -> AsyncSession:
        """A new session, with a shell of its own."""
        return await self.create_session(env=env, cwd=cwd)

    async def create_session(
        self, *, kind: str = "shell", env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> AsyncSession:
        """A new session. `kind`: shell, or python: see `python`."""
        call = calls.create_session(self.id, env, cwd, None if kind == "shell" else kind)
        return AsyncSession(self, await self._transport.call(call, SessionRecord))

    async def python(self, *, env: Mapping[str, str] | None = None, cwd: str | None = None) -> AsyncSession:
        """A new Python context: a session whose runs are Python source, executed by the VM's own python3 in one
        interpreter, so that variables, imports and functions live on.

        A run of it has `results` (the value of the last expression, what was displayed, figures), and `error` if an
        exception has ended it. Its `context` says when an interpreter is new: it is lost with the VM's box.
        """
        return await self.create_session(kind="python", env=env, cwd=cwd)

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
        call = calls.update_vm(self.id, sizes, name=name, description=description, ttl=ttl, immutable=immutable or None)
        self._record = await self._transport.call(call, VMRecord)
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
