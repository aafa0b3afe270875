"""A computer: a VM as Arker speaks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from boxwood.client._sync.run import Run
from boxwood.client._sync.vm import VM
from boxwood.client.errors import NotFound
from boxwood.faces.arker.errors import ArkerError, bad_request, translated
from boxwood.faces.arker.results import BackgroundRun, RunResult, SyncBinding, SyncBindingList, binding, iso
from boxwood.faces.arker.sync import Sync


class Computer:
    """A handle: `id`, and what the server told of it (None where it has not been asked)."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    @property
    def id(self) -> str:
        return self._vm.id

    @property
    def vm_id(self) -> str:
        return self._vm.id

    @property
    def name(self) -> str | None:
        return self._vm.name

    @property
    def state(self) -> str:
        """idle or running."""
        return self._vm.state

    @property
    def region(self) -> str | None:
        return self._vm.region

    @property
    def created_at(self) -> str | None:
        """ISO 8601."""
        return iso(self._vm.created_at) or None

    @property
    def sync(self) -> Sync:
        """Its files."""
        return Sync(self._vm)

    def fork(self, *, name: str | None = None, is_public: bool = False, region: str | None = None) -> Computer:
        """A new computer with all that this one has; of a public name such as "arkuntu", a fresh one.

        `region` is taken and without effect: a Boxwood server is one region.

        :raises ArkerError: not_found; conflict: the name is taken.
        """
        with translated():
            return Computer(self._vm.fork(name, public=is_public))

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        session_id: int | str | None = None,
        timeout: float | None = None,
        background: Literal[False] = False,
        idempotency_key: str | None = None,
    ) -> RunResult: ...

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        session_id: int | str | None = None,
        timeout: float | None = None,
        background: Literal[True],
        idempotency_key: str | None = None,
    ) -> BackgroundRun: ...

    def run(
        self,
        command: str | Sequence[str],
        *,
        session_id: int | str | None = None,
        timeout: float | None = None,
        background: bool = False,
        idempotency_key: str | None = None,
    ) -> RunResult | BackgroundRun:
        """Runs a command in a shell of the computer that keeps its directory and variables. Its exit code is no error.

        :param session_id: a session's id, or its number (made if need be); without one, the default session.
        :param timeout: seconds until all that it started is killed; without one, never.
        :param background: do not wait for its end.
        :param idempotency_key: the same key gives the same run.
        :raises ArkerError: not_found; internal: the computer lost the command.
        """
        session = int(session_id) if isinstance(session_id, str) and _is_number(session_id) else session_id
        with translated():
            run = self._vm.run(
                command, timeout=timeout, session=session, background=background, idempotency_key=idempotency_key
            )
        if background:
            return BackgroundRun(run.run_id or "", run.session_id, run.state)
        return self._result(run)

    def _result(self, run: Run) -> RunResult:
        exit_code = run.exit_code
        if exit_code is None:
            if run.state != "completed":
                why = run.fail_reason or "it was cancelled, or its end is not known"
                raise ArkerError("internal", f"the command did not come to its end: {why}", 500)
            exit_code = 0
        session = run.session_id or ""
        return RunResult(
            run.stdout_bytes, run.stderr_bytes, exit_code, run.duration_ms or 0.0, session, run.run_id, run.state,
            _where=lambda: self._directory(session),
        )  # fmt: skip

    def _directory(self, session: str) -> str:
        with translated():
            try:
                return self._vm.get_session(session).cwd
            except NotFound:
                return ""

    def resize(self, *, vcpu_count: int | None = None, memory_mib: int | None = None) -> Computer:
        """Changes its size, at once. Returns this computer.

        :raises ArkerError: bad_request; vm_busy: what runs in it uses more memory already.
        """
        if vcpu_count is None and memory_mib is None:
            raise bad_request("resize: vcpu_count, memory_mib or both")
        with translated():
            self._vm.update(vcpu=vcpu_count, memory_mib=memory_mib)
        return self

    def delete(self) -> None:
        """Deletes the computer; its forks stay as they are. :raises ArkerError: not_found."""
        with translated():
            self._vm.delete()

    def create_sync(self, *, filesystem_id: str, path: str | None = None) -> SyncBinding:
        """Mounts a filesystem at a path, and returns when it is there.

        :raises ArkerError: not_found; conflict: something is mounted there; internal: it cannot be mounted there.
        """
        with translated():
            return binding(self._vm.mounts.create(filesystem_id, path))

    def list_syncs(self) -> SyncBindingList:
        """What is mounted here."""
        with translated():
            return SyncBindingList([binding(one) for one in self._vm.mounts.list()])

    def delete_sync(self, sync_id: str) -> None:
        """Takes it away; what the filesystem holds stays. :raises ArkerError: not_found."""
        with translated():
            self._vm.mounts.delete(sync_id)

    def __repr__(self) -> str:
        return f"<Computer {self.id}>"


def _is_number(session: str) -> bool:
    return session.isascii() and session.isdigit() and len(session) < 10
