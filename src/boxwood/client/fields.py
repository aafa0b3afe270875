"""What VM, Run and Session know without asking the server: shared by their blocking and their awaitable forms."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from urllib.parse import urlsplit

from boxwood.client.models import (
    ENDED,
    CopyReport,
    Resources,
    RunRecord,
    SessionRecord,
    VMNetwork,
    VMRecord,
    decode_bytes,
)
from boxwood.client.python import PythonContext, PythonError, PythonResult

DEFAULT_PORT = 8080  # which the hostname of a VM stands for


class VMFields:
    """A VM as the server last told it; `refresh()` asks again."""

    _record: VMRecord

    @property
    def id(self) -> str:
        """26 characters, upper case."""
        return self._record.vm_id

    @property
    def name(self) -> str | None:
        return self._record.name

    @property
    def description(self) -> str | None:
        return self._record.description

    @property
    def state(self) -> str:
        """idle or running."""
        return self._record.state

    @property
    def public(self) -> bool:
        """May others fork it?"""
        return self._record.public

    @property
    def immutable(self) -> bool:
        return self._record.immutable

    @property
    def resources(self) -> Resources:
        """vcpu in cores, memory_mib and disk_mib in MiB."""
        return self._record.resources or Resources()

    @property
    def hostname(self) -> str | None:
        """At which its port 8080 is shown over HTTP; for another one `-PORT` stands before the first dot."""
        return self._record.hostname

    @property
    def address(self) -> str | None:
        """On the network, while the VM has a box that is on one; the next box has another."""
        return (self._record.network or VMNetwork()).address

    @property
    def created_at(self) -> datetime | None:
        return self._record.created_at

    @property
    def last_active_at(self) -> datetime | None:
        return self._record.last_active_at

    @property
    def root_source_id(self) -> str | None:
        """The deepest ancestor's id."""
        return self._record.root_source_vm_id

    @property
    def root_source_name(self) -> str | None:
        """The deepest ancestor's name."""
        return self._record.root_source_vm_name

    @property
    def owner_org_id(self) -> str | None:
        return self._record.owner_org_id

    @property
    def region(self) -> str | None:
        return self._record.region

    @property
    def copied(self) -> CopyReport | None:
        """Of a fork just made from a VM with running processes: what it cost."""
        return self._record.copied

    @property
    def record(self) -> VMRecord:
        """All of it as plain data."""
        return self._record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} name={self.name!r} state={self.state}>"


class SessionFields:
    """A session as the server last told it."""

    _record: SessionRecord

    @property
    def id(self) -> str:
        return self._record.session_id

    @property
    def index(self) -> int:
        """Its number in the VM; 0 is the default session, which runs use that name none."""
        return self._record.session_idx

    @property
    def state(self) -> str:
        """idle, pending or running."""
        return self._record.state

    @property
    def cwd(self) -> str:
        """Its shell's directory; empty before the first run."""
        return self._record.cwd

    @property
    def kind(self) -> str:
        """shell, or python: an interpreter whose variables live on; its runs are source."""
        return self._record.kind

    @property
    def env(self) -> dict[str, str]:
        """What it was created with."""
        return dict(self._record.env or {})

    @property
    def record(self) -> SessionRecord:
        return self._record

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} index={self.index} state={self.state} cwd={self.cwd!r}>"


class RunFields:
    """A run as the server last told it."""

    _record: RunRecord

    @property
    def run_id(self) -> str | None:
        return self._record.run_id

    @property
    def session_id(self) -> str | None:
        return self._record.session_id

    @property
    def command(self) -> str | None:
        return self._record.command

    @property
    def state(self) -> str:
        """pending, running, completed, failed or cancelled."""
        if self._record.state is not None:
            return self._record.state
        return "running" if self._record.stdout is None else "completed"

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def ok(self) -> bool:
        """Has it ended, and with exit code 0?"""
        return self.state == "completed" and self.exit_code == 0

    @property
    def exit_code(self) -> int | None:
        """As a shell has it (128 + n for signal n). None: still running, cancelled, or waiting at a prompt."""
        return self._record.exit_code

    @property
    def retry_count(self) -> int:
        """Of a durable VM: how often it was begun again, its host having stopped. Its output is of the last time."""
        return self._record.retry_count

    @property
    def fail_reason(self) -> str | None:
        return self._record.fail_reason

    @property
    def duration_ms(self) -> float | None:
        """Milliseconds from the start of the command to its end, as the server measured them."""
        return self._record.duration_ms

    @property
    def started_at(self) -> datetime | None:
        return self._record.started_at

    @property
    def completed_at(self) -> datetime | None:
        return self._record.completed_at

    @property
    def truncated(self) -> int:
        """Bytes of output that the server did not keep."""
        return self._record.truncated

    @property
    def results(self) -> list[PythonResult]:
        """Of a run in a Python context: what it has shown so far, in order."""
        return self._record.results

    @property
    def result(self) -> PythonResult | None:
        """Of a run in a Python context: the value of its last expression, if it has one that is not None."""
        return next((result for result in reversed(self.results) if result.kind == "value"), None)

    @property
    def error(self) -> PythonError | None:
        """Of a run in a Python context: the exception that has ended it."""
        return self._record.exception

    @property
    def context(self) -> PythonContext | None:
        """Of a run in a Python context: which interpreter it had, a new one say."""
        return self._record.context

    @property
    def results_lost(self) -> int:
        """Results that were too many or too large to be kept."""
        return self._record.results_lost

    @cached_property
    def stdout_bytes(self) -> bytes:
        """Exactly what the command wrote to standard output, so far."""
        return decode_bytes(self._record.stdout, self._record.stdout_encoding)

    @cached_property
    def stderr_bytes(self) -> bytes:
        """Exactly what the command wrote to standard error, so far."""
        return decode_bytes(self._record.stderr, self._record.stderr_encoding)

    @property
    def stdout(self) -> str:
        """Standard output as text; what is not UTF-8 becomes U+FFFD."""
        return _shown(self._record.stdout, self._record.stdout_encoding, self.stdout_bytes)

    @property
    def stderr(self) -> str:
        """Standard error as text; what is not UTF-8 becomes U+FFFD."""
        return _shown(self._record.stderr, self._record.stderr_encoding, self.stderr_bytes)

    @property
    def record(self) -> RunRecord:
        return self._record

    def _adopt(self, record: RunRecord) -> None:
        self._record = record
        for name in ("stdout_bytes", "stderr_bytes"):
            self.__dict__.pop(name, None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.run_id} state={self.state} exit_code={self.exit_code}>"


def _shown(text: str | None, encoding: str, data: bytes) -> str:
    return text if text is not None and encoding != "base64" else data.decode("utf-8", "replace")


def port_url(server: str, hostname: str, port: int) -> str:
    """Of a port of a VM, where the server at this URL shows it."""
    parts = urlsplit(server)
    label, dot, domain = hostname.partition(".")
    shown = hostname if port == DEFAULT_PORT else f"{label}-{port}{dot}{domain}"
    return f"{parts.scheme}://{shown}" + (f":{parts.port}/" if parts.port else "/")
