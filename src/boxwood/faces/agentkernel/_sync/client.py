# Made from ../_async/client.py by tools/unasync.py: change that one.
"""The client: everything starts here."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

from boxwood.client._sync.client import PUBLIC_ORG, Boxwood
from boxwood.client._sync.vm import VM
from boxwood.client.errors import BoxwoodError, NotFound
from boxwood.faces.agentkernel import outcome
from boxwood.faces.agentkernel._sync.forms import Events, begun
from boxwood.faces.agentkernel._sync.session import SandboxSession
from boxwood.faces.agentkernel._sync.stream import follow
from boxwood.faces.agentkernel.errors import (
    AgentKernelError,
    AuthError,
    NetworkError,
    NotFoundError,
    ServerError,
    ValidationError,
    failure,
    translated,
)
from boxwood.faces.agentkernel.images import Images
from boxwood.faces.agentkernel.models import (
    BatchResult,
    BatchRunResponse,
    FileReadResponse,
    RunOutput,
    SandboxInfo,
    StreamEvent,
)
from boxwood.faces.agentkernel.order import Order, checked_name, environment, exec_text, file_path, is_name
from boxwood.faces.agentkernel.place import target
from boxwood.faces.agentkernel.slots import Slots

PATIENCE = 60.0  # seconds for the server to answer, where no timeout is wanted


class AgentKernel:
    """A Boxwood server, spoken to as agentkernel is. As a context manager its connections are closed at the end.

    A command is always a list of arguments, and runs as exactly these. One that does not exit with 0 is an error.

    :param base_url: else AGENTKERNEL_BASE_URL; else http://localhost:18888.
    :param api_key: else AGENTKERNEL_API_KEY; else the key of the local server, for those who may read it.
    :param timeout: seconds, for an answer and for a command (not for a stream); a command that takes longer is stopped.
        None: no bound.
    :param images: names of goldens for image names, before those that `boxwood.faces.agentkernel.images` knows.
    :raises AgentKernelError: each method does, where the server refuses or the command fails.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = 30.0,
        *,
        images: Mapping[str, str] | None = None,
    ) -> None:
        with translated():
            place = target(base_url, api_key)
            self._patience = PATIENCE if timeout is None else timeout
            self._box = Boxwood(place.url, place.api_key, timeout=self._patience)
        self.base_url = place.url
        self._timeout = timeout
        self._images = Images(images)
        self._slots = Slots()

    def health(self) -> str:
        """ok. :raises ServerError: the server is there and not well."""
        with translated():
            said = self._box.health()
        if said.status != "ok":
            raise ServerError(f"the server is {said.status}: {said.problem or 'it is still starting'}", 503)
        return said.status

    def run(
        self, command: Sequence[str], *, image: str | None = None, profile: str | None = None, fast: bool = True
    ) -> RunOutput:
        """Runs a command in a sandbox that is made for it and deleted afterwards.

        :param image: `boxwood.faces.agentkernel.images` says which are known; None: the server's own system.
        :param profile: permissive or moderate, here the same: one processor, 512 MiB. restrictive is not there yet.
        :param fast: makes no difference: no sandbox is ever used twice.
        :raises ServerError: it did not exit with 0; `exit_code` and `output` tell more.
        """
        text, order = exec_text(command), Order.of(image, profile=profile)
        with translated():
            with self._fork(order) as vm:
                run = vm.run(text, env={}, timeout=self._timeout)
        return outcome.output_of(run, self._timeout)

    def run_stream(
        self, command: Sequence[str], *, image: str | None = None, profile: str | None = None, fast: bool = True
    ) -> Events:
        """As `run`, its output while it runs: an iterator of events. A command that fails ends it with done or error,
        and raises nothing; no key and no server do. There is no timeout."""
        return Events(self._events(command, image, profile, fast))

    def _events(
        self, command: Sequence[str], image: str | None, profile: str | None, fast: bool
    ) -> Generator[StreamEvent, None, None]:
        try:
            text, order = exec_text(command), Order.of(image, profile=profile)
        except AgentKernelError as error:
            yield outcome.broken(error)
            return
        try:
            with translated():
                made = self._fork(order)
        except (AuthError, NetworkError):
            raise
        except AgentKernelError as error:
            yield outcome.started(command, fast)
            yield outcome.broken(error)
            return
        try:
            with made as vm:
                yield outcome.started(command, fast)
                if not fast:
                    for step in outcome.progress(vm.id):
                        yield step
                run = vm.run(text, env={}, background=True)
                for event in follow(run, self._patience):
                    yield event
        except BoxwoodError as error:
            yield outcome.broken(failure(error))

    def batch_run(self, commands: Sequence[Sequence[str]]) -> BatchRunResponse:
        """Runs commands one after the other, each as `run` does, and tells of each what came of it."""
        if not commands:
            raise ValidationError("a batch holds at least one command")
        results = []
        for command in commands:
            try:
                results.append(BatchResult((self.run(command)).output, None))
            except (AuthError, NetworkError):
                raise
            except AgentKernelError as error:
                results.append(BatchResult(None, error.message))
        return BatchRunResponse(results)

    def list_sandboxes(self) -> list[SandboxInfo]:
        """Every sandbox, the newest first: your VMs that have a name a sandbox can have."""
        with translated():
            return [outcome.info(vm) for vm in self._box.list(page_size=1000) if is_name(vm.name)]

    def create_sandbox(
        self,
        name: str,
        *,
        image: str | None = None,
        vcpus: int | None = None,
        memory_mb: int | None = None,
        profile: str | None = None,
    ) -> SandboxInfo:
        """A sandbox that stays until it is removed.

        :param name: 1 to 63 letters, digits, `-` and `_`.
        :param image: `boxwood.faces.agentkernel.images` says which are known; None: the server's own system.
        :param vcpus: processors; None: 1. `memory_mb`: MiB; None: 512.
        :param profile: moderate: no more than one processor and 512 MiB, whatever is asked for; permissive, and None:
            as asked for. restrictive is not there yet.
        :raises ValidationError: not such a name, no such image. ServerError: 409, the name is taken.
        """
        checked_name(name)
        order = Order.of(image, vcpus=vcpus, memory_mb=memory_mb, profile=profile)
        with translated():
            return outcome.info(self._fork(order, name))

    def get_sandbox(self, name: str) -> SandboxInfo:
        """:raises NotFoundError: there is none of this name."""
        with translated():
            return outcome.info(self._own(name))

    def remove_sandbox(self, name: str) -> None:
        """:raises NotFoundError: there is none of this name."""
        with translated():
            (self._own(name)).delete()

    def exec_in_sandbox(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | Sequence[str] | None = None,
        workdir: str | None = None,
    ) -> RunOutput:
        """Runs a command in a sandbox; commands run side by side, and none changes another one's directory.

        :param env: a mapping or a list of NAME=value, for this command.
        :param workdir: absolute; None: the home of root.
        :raises NotFoundError: no such sandbox. ServerError: it did not exit with 0.
        """
        text, given = exec_text(command), environment(env)
        with translated():
            vm = self._own(name)
            with self._slots.of(vm.record) as place:
                run = vm.run(text, env=given, cwd=workdir, session=place, timeout=self._timeout)
        return outcome.output_of(run, self._timeout)

    def sandbox(
        self,
        name: str,
        *,
        image: str | None = None,
        vcpus: int | None = None,
        memory_mb: int | None = None,
        profile: str | None = None,
    ) -> SandboxSession:
        """A sandbox as a context manager, removed at the end of the block: see `create_sandbox`."""
        options = {"image": image, "vcpus": vcpus, "memory_mb": memory_mb, "profile": profile}
        return begun(SandboxSession(self, name, options))

    def read_file(self, name: str, path: str) -> FileReadResponse:
        """A file of a sandbox. :raises NotFoundError: no such sandbox or file."""
        place = file_path(path)
        with translated():
            data = (self._own(name)).read_file(place)
        try:
            return FileReadResponse(data.decode(), "utf8", len(data))
        except UnicodeDecodeError:
            return FileReadResponse(b64encode(data).decode(), "base64", len(data))

    def write_file(self, name: str, path: str, content: str, *, encoding: str | None = None) -> str:
        """Writes a file and the directories above it; `encoding` base64: so the content is given. Says what it did."""
        place = file_path(path)
        try:
            data = b64decode(content, validate=True) if encoding == "base64" else content.encode()
        except ValueError as error:
            raise ValidationError(f"Invalid base64: {error}") from None
        with translated():
            (self._own(name)).write_file(place, data)
        return f"Wrote {len(data)} bytes to {place}"

    def delete_file(self, name: str, path: str) -> str:
        """Deletes a file; one that is not there is deleted already. Says what it did."""
        place = file_path(path)
        self.exec_in_sandbox(name, ["rm", "-f", "--", place])
        return f"Deleted {place}"

    def close(self) -> None:
        """Closes the connections."""
        self._box.close()

    def _fork(self, order: Order, name: str | None = None) -> VM:
        """:raises BoxwoodError, AgentKernelError: refused."""
        known = self._images.known
        if not known:
            self._images.learn(self._box.images())
        if name is not None and self._images.taken(name):
            raise ValidationError(f"{name!r} is the name of an image on this server: a sandbox needs another")
        try:
            return self._box.fork(
                self._images.source(order.image), name, description=order.note, vcpu=order.vcpu,
                memory_mib=order.memory_mib,
            )  # fmt: skip
        except (NotFound, ValidationError):
            if not known:
                raise
        self._images.forget()  # what was learnt may be out of date
        return self._fork(order, name)

    def _own(self, name: str) -> VM:
        """A sandbox of the caller's, never a golden: those come first where the contract looks for a name."""
        checked_name(name)
        with suppress(NotFound):
            vm = self._box.get(name)
            if vm.owner_org_id != PUBLIC_ORG:
                return vm
        raise NotFoundError(f"Sandbox not found: {name}")

    def __enter__(self) -> AgentKernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"
