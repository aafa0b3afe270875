"""A command beside a session's shell: in its directory and environment with some changes, perhaps as another user.

It changes nothing in the session. It has a shell of its own, or is a program that a minder starts: a subreaper like a
session's shell, and not waited for alone.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

from boxwood.engine.agent.common import Common
from boxwood.engine.agent.dialects import dialect
from boxwood.engine.agent.loop import IN, Timer
from boxwood.engine.agent.minder import Minder, Verdict
from boxwood.engine.agent.procs import Account, Streams, in_memory, spawn
from boxwood.engine.agent.run import Command, Run, Source
from boxwood.engine.agent.shell import find_shell
from boxwood.engine.agent.trees import Killing, ProcessTree, Vigil

_NUMBER = re.compile(rb"[0-9]{1,10}\Z")
_MOST_READ = 1 << 20
_MOST_ID = 0xFFFFFFFE
_DROPPED = 64 << 10  # bytes of output in one go
_MOST_ARGUMENT = 100_000  # the kernel takes no more than 128 KiB in one


def _lines(path: str) -> list[list[bytes]]:
    """The entries of /etc/passwd or /etc/group, read by ourselves: the C library would load what the VM names."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        data = os.read(fd, _MOST_READ)
    except OSError:
        return []
    finally:
        os.close(fd)
    return [line.split(b":") for line in data.splitlines()]


def _number(text: bytes) -> int | None:
    return int(text) if _NUMBER.match(text) and int(text) <= _MOST_ID else None


def find_user(text: str) -> tuple[Account, dict[bytes, bytes]]:
    """`name`, `uid`, `name:group` or `uid:gid` as an account, and its HOME, USER, LOGNAME. OSError EINVAL: no such."""
    wanted, _, group = os.fsencode(text).partition(b":")
    number = _number(wanted)
    entries = [e for e in _lines("/etc/passwd") if len(e) >= 7 and None not in (_number(e[2]), _number(e[3]))]
    found = next((e for e in entries if e[0] == wanted), None)
    if found is None and number is not None:
        found = next((e for e in entries if int(e[2]) == number), None)
    if found is None and number is None:
        raise OSError(errno.EINVAL, f"there is no user {text!r} in this VM")
    name, uid, gid, home = (
        (found[0], int(found[2]), int(found[3]), found[5]) if found else (wanted, number or 0, 0, b"/")
    )
    groups = [e for e in _lines("/etc/group") if len(e) >= 4 and _number(e[2]) is not None]
    if group:
        gid = _group(group, groups)
    member = tuple(int(e[2]) for e in groups if name in e[3].split(b","))
    account = Account(uid, gid, tuple(dict.fromkeys((gid, *member))))
    return account, {b"HOME": home or b"/", b"USER": name, b"LOGNAME": name}


def _group(wanted: bytes, groups: list[list[bytes]]) -> int:
    for entry in groups:
        if entry[0] == wanted:
            return int(entry[2])
    number = _number(wanted)
    if number is None:
        raise OSError(errno.EINVAL, f"there is no group {os.fsdecode(wanted)!r} in this VM")
    return number


class OneShot:
    """`on_end` is called when the run has ended. OSError from the start: nothing was started."""

    def __init__(
        self,
        common: Common,
        sid: str,
        command: Command,
        run: Run,
        env: Mapping[bytes, bytes],
        changes: Mapping[bytes, bytes],
        cwd: bytes,
        user: str | None,
        on_end: Callable[[OneShot], None],
    ) -> None:
        self.sid = sid
        self._common = common
        self._loop = common.loop
        self._command = command
        self._run = run
        self._on_end = on_end
        self._status: int | None = None
        self._started = True
        self._minder: Minder | None = None
        self._minder_dies = False
        self._reason = "exit"
        self._killing = False
        self._dropping = False
        self._ended = False  # the run is over, but what it has left may live on
        self._over = False
        self._timeout: Timer | None = None
        self.tree = ProcessTree(common.orphanage)
        self.tree.on_change = self._advance
        self._vigil = Vigil(self._loop, self._advance)
        account, about = find_user(user) if user else (None, {})
        try:
            place = os.open(cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, f"{os.fsdecode(cwd)}: {os.strerror(error.errno or errno.EIO)}") from None
        try:
            self._sources = self._spawn({**env, **about, b"PWD": cwd, **changes}, place, account)
        finally:
            os.close(place)
        for source in self._sources:
            source.flow(run)
        if command.timeout:
            self._timeout = self._loop.at(time.monotonic() + command.timeout, lambda: self.kill("timeout"))

    def _spawn(self, env: Mapping[bytes, bytes], place: int, account: Account | None) -> list[Source]:
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for _ in range(2):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                ours.append(reading)
                theirs.append(writing)
                os.set_blocking(reading, False)
            out, err = theirs
            theirs.append(stdin := self._input())
            if (script := self._script()) is not None:
                theirs.append(script)
            pid = self._start(env, Streams(stdin, out, err, script), place, account)
        except OSError:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self.tree.grow(pid)
        return [Source(self._loop, fd, stream) for stream, fd in enumerate(ours, 1)]

    def _input(self) -> int:
        """What it reads: a descriptor."""
        if (intake := self._run.intake) is not None:
            stdin, pipe = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(pipe, False)
            intake.attach(pipe, has_reader=True)
            return stdin
        given = self._command.stdin
        return in_memory(given) if given else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _script(self) -> int | None:
        """Its text, if that has no place among a shell's arguments: a descriptor."""
        text = self._command.text
        return in_memory(text) if len(text) > _MOST_ARGUMENT else None

    def _start(self, env: Mapping[bytes, bytes], streams: Streams, place: int, account: Account | None) -> int:
        """The root of what it is to be. OSError."""
        if self._command.argv is not None:
            minder = self._common.minders.start(self._command.argv, env, streams, place, account)
            minder.on_verdict, minder.on_death = self._on_verdict, self._on_minder_death
            self._minder, self.tree.group = minder, lambda: minder.program
            return minder.pid
        exe = find_shell(self._common.shells)
        arguments = [b"-c", self._command.text] if streams.script is None else [b"/proc/self/fd/3"]
        pid = spawn(exe, [dialect(exe).argv[0], *arguments], env, streams, place, account)
        self._loop.child(pid, self._on_exit)
        return pid

    def _on_exit(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self.tree.root_died()
        self._advance()

    def _on_verdict(self, verdict: Verdict) -> None:
        self._status = os.waitstatus_to_exitcode(verdict.status)
        if verdict.refusal:
            assert self._command.argv is not None
            program, reason = self._command.argv[0], os.strerror(verdict.refusal).encode()
            self._run.put(2, b"%s: %s\n" % (program, reason))
            self._status, self._started = verdict.code, False
        self._advance()

    def _on_minder_death(self) -> None:
        """Somebody has killed it."""
        self._minder, self._minder_dies = None, False
        if self._status is None:
            self._status = -signal.SIGKILL
        self.tree.root_died()
        self._advance()

    @property
    def over(self) -> bool:
        """Nothing of it lives."""
        return self._over

    def kill(self, reason: str) -> None:
        if not self._killing and not self._over:
            self._killing, self._reason = True, reason
            Killing(self._loop, self.tree, {}, True, self._on_killed)

    def _on_killed(self, root_too: bool) -> None:
        self._killing, self._minder_dies = False, root_too and self._minder is not None
        self._advance()

    def signal(self, signum: int) -> bool:
        group = self.tree.group() if self._status is None else None
        return self.tree.signal([-group] if group is not None else self.tree.members({}), signum)

    def _advance(self) -> None:
        if self._over or self._killing or self._minder_dies or self._status is None:
            return
        if leaves := self._command.leaves and self._reason == "exit":
            self._end()
        while live := self.tree.live():
            if self._reason != "exit" and self.tree.root is None:
                self._killing = True  # it was started in the moment in which the root was killed
                Killing(self._loop, self.tree, {}, False, self._on_killed)
                return
            if self._vigil.keep(set(live)):
                if leaves and not self._dropping:
                    self._drop_output()
                return
        self._end()
        self._over = True
        self._vigil.close()
        for source in self._sources:
            self._loop.unwatch(source.fd)
            os.close(source.fd)
        if self._minder is not None:
            self.tree.let_go()
            self._common.minders.give_back(self._minder)
        self._on_end(self)

    def _end(self) -> None:
        """The end of the run, for whoever waits for it."""
        if self._ended or self._status is None:
            return
        self._ended = True
        if self._timeout is not None:
            self._timeout.cancel()
        for source in self._sources:
            source.catch_up()
            source.stop()
        code = self._status if self._status >= 0 else 128 - self._status
        self._run.finish(124 if self._reason == "timeout" else code, self._reason, started=self._started)

    def _drop_output(self) -> None:
        """What the run has left may go on putting things out, which nobody hears, and must not die of that."""
        self._dropping = True
        for source in self._sources:
            self._loop.watch(source.fd, IN, partial(self._drop, source.fd))

    def _drop(self, fd: int, events: int) -> None:
        try:
            if os.read(fd, _DROPPED):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._loop.unwatch(fd)  # nobody has its other end any more
