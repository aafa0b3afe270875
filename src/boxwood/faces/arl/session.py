"""SandboxSession: a sandbox of a pool, and tasks in it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Self

from boxwood.faces.arl import resources
from boxwood.faces.arl.callbacks import Callback, Callbacks
from boxwood.faces.arl.connected import Connected
from boxwood.faces.arl.durations import go_seconds, go_text, seconds
from boxwood.faces.arl.errors import ApiException, ArlError, TaskTimeout, WarmPoolNotFound, api_error
from boxwood.faces.arl.objects import wait_for
from boxwood.faces.arl.resources import Object, count, reason, status_of

READY_SECONDS = 300.0  # for which a sandbox is waited for
MARGIN = 10.0  # seconds that a server may take beyond the commands' own time
TIMED_OUT = -1  # the exit code of a command that was killed; by its timeout, if that was over


class SandboxSession(Connected):
    """A sandbox, taken from a pool, and what is run in it. As a context manager it takes one and gives it back.

    :param pool_ref: the name of the pool.
    :param namespace: that of the pool and the sandbox.
    :param keep_alive: is the sandbox for more than one task? Then leaving a `with` block does not delete it either, and
        `delete_sandbox()` has to.
    :param timeout: of each command of a task, unless `execute` says otherwise: seconds, or text like "30s", "5m",
        "1h30m". A number, as published clients have it, also bounds how long a sandbox is waited for; else that is five
        minutes.
    :param idle_timeout_seconds: after so long without a task the sandbox is deleted; 0: never; None: 1800 with
        `keep_alive`, else what the server says.
    :param url, api_key: a Boxwood server; `kubeconfig`, `context`: a cluster; for the order see `place`.
    :raises ValueError: not a duration, or two servers at once.
    """

    def __init__(
        self,
        pool_ref: str,
        namespace: str = "default",
        keep_alive: bool = False,
        timeout: float | str = "30s",
        idle_timeout_seconds: int | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
    ) -> None:
        super().__init__(url, api_key, kubeconfig, context)
        seconds(timeout)
        self.pool_ref = pool_ref
        self.namespace = namespace
        self.keep_alive = keep_alive
        self.timeout = timeout
        self.idle_timeout_seconds = idle_timeout_seconds
        self.sandbox_name: str | None = None
        self._callbacks = Callbacks()

    # --- the sandbox

    def create_sandbox(self) -> dict[str, Any]:
        """Takes a sandbox from the pool, and returns it when it is ready. If the session has one, that is given back
        before.

        :raises WarmPoolNotFound: there is no such pool (an ApiException with status 404).
        :raises TaskTimeout: none was ready in time; nothing is left behind.
        :raises ArlError: it failed; the message says why.
        """
        self.delete_sandbox()
        self._pool()
        name = resources.sandbox_name()
        body = resources.sandbox(name, self.namespace, self.pool_ref, self.keep_alive, self.idle_timeout_seconds)
        try:
            found = self._objects.create("sandboxes", self.namespace, body, ours=True)
            ready = self._ready(name, found)
        except BaseException as error:
            self._forget("sandboxes", name, error)
            raise
        self.sandbox_name = name
        return ready

    def delete_sandbox(self) -> None:
        """Gives the sandbox back. Nothing happens if there is none, or none any more."""
        name = self.sandbox_name
        if name is None:
            return
        try:
            self._objects.delete("sandboxes", self.namespace, name)
        except ApiException as error:
            if error.status != 404:
                raise
        self.sandbox_name = None

    def get_pool_status(self) -> dict[str, int]:
        """`total`, `ready_idle`, `allocated` and `available` sandboxes of the pool: `total` is how many it is to hold,
        `available` how many can be had at once.

        :raises WarmPoolNotFound: there is no such pool.
        """
        pool = self._pool()
        ready = count(status_of(pool), "readyReplicas")
        total, allocated = count(pool.get("spec") or {}, "replicas"), count(status_of(pool), "allocatedReplicas")
        return {"total": total, "ready_idle": ready, "allocated": allocated, "available": ready}

    def create_interactive_shell(self, container: str = "executor") -> NoReturn:
        """:raises ArlError: not there yet."""
        raise ArlError("create_interactive_shell: not there yet, it is coming; `execute` runs commands")

    # --- tasks

    def execute(
        self,
        steps: Sequence[Mapping[str, Any]],
        trace_id: str | None = None,
        timeout: float | str | None = None,
    ) -> dict[str, Any]:
        """Runs the steps in their order, up to the first that fails, and returns the task. A step that fails is no
        exception: `result["status"]["state"]` is "Succeeded" or "Failed", `stdout` and `stderr` are those of all steps,
        `exitCode` that of the last one.

        :param steps: {"name", "type": "Command", "command": [...], "workDir", "env"} or {"name", "type": "FilePatch",
            "path", "content"}.
        :param trace_id: kept with the task.
        :param timeout: of each command: seconds, or text like "5m"; None: the session's.
        :raises TaskTimeout: a command took longer (its output so far is in `task`), or no end of the task came in time.
        :raises ArlError: there is no sandbox: `create_sandbox()` comes first.
        :raises ApiException: the server said no.
        """
        if self.sandbox_name is None:
            raise ArlError("this session has no sandbox: call create_sandbox() first, or use it in a `with` block")
        if isinstance(steps, Mapping | str | bytes):
            raise TypeError("steps: a list of them")
        each = seconds(self.timeout if timeout is None else timeout)
        name = resources.task_name(self.sandbox_name)
        body = resources.task(name, self.namespace, self.sandbox_name, steps, go_text(each), trace_id)
        task = self._ended(name, body, each * max(1, _commands(steps)) + MARGIN)
        return self._told(task, each)

    def execute_with_callback(
        self,
        steps: Sequence[Mapping[str, Any]],
        callback_script: str | None = None,
        trace_id: str | None = None,
        timeout: float | str | None = None,
    ) -> dict[str, Any]:
        """As `execute`; if the task succeeded, `bash callback_script` runs as one more, which is put under
        `callback_result`. Registered callbacks hear of both.

        :param callback_script: the path of a script in the sandbox.
        """
        result = self.execute(steps, trace_id, timeout)
        if callback_script is not None and status_of(result).get("state") == "Succeeded":
            step = {"name": "callback_script", "type": "Command", "command": ["/bin/bash", callback_script]}
            result["callback_result"] = self.execute([step], trace_id, timeout)
        return result

    def register_callback(self, event: str, fn: Callback) -> None:
        """`fn(result)` is called after each task: for `on_task_complete` always, then for `on_task_success` or
        `on_task_failure`. What it raises is logged, and changes nothing."""
        self._callbacks.add(event, fn)

    def unregister_callback(self, event: str, fn: Callback | None = None) -> None:
        """Takes `fn` out again; without one, all of the event."""
        self._callbacks.remove(event, fn)

    # --- what these are made of

    def _pool(self) -> Object:
        """:raises WarmPoolNotFound: naming those that are there."""
        try:
            return self._objects.get("warmpools", self.namespace, self.pool_ref)
        except ApiException as error:
            if error.status != 404:
                raise
            pools = self._objects.list("warmpools", self.namespace)  # refused where nobody knows of pools at all
            names = sorted(str(pool.get("metadata", {}).get("name")) for pool in pools)
            there = f"there are: {', '.join(names)}" if names else "there are none; create_warmpool() makes one"
            text = f"WarmPool {self.pool_ref!r} not found in namespace {self.namespace!r}; {there}"
            raise api_error(404, text, error.body, WarmPoolNotFound) from error

    def _ready(self, name: str, found: Object) -> Object:
        if not _is_settled(found):
            patience = READY_SECONDS if isinstance(self.timeout, str) else seconds(self.timeout)
            found = wait_for(self._objects, "sandboxes", self.namespace, name, _is_settled, patience)
            if not _is_settled(found):
                why = f": {reason(found)}" if reason(found) else ""
                raise TaskTimeout(f"no sandbox of WarmPool {self.pool_ref!r} was ready within {patience:g} s{why}")
        if status_of(found).get("phase") == "Failed":
            raise ArlError(f"the sandbox failed: {reason(found) or 'the server does not say why'}")
        return found

    def _ended(self, name: str, body: Object, patience: float) -> Object:
        """The task at its end. If that does not come, whatever the reason, the task is deleted."""
        try:
            found = self._objects.create("tasks", self.namespace, body, ours=True)
            if _is_over(found):
                return found
            found = wait_for(self._objects, "tasks", self.namespace, name, _is_over, patience)
            if not _is_over(found):
                raise TaskTimeout(f"task {name} has not ended after {patience:g} s, and was deleted")
        except BaseException as error:
            self._forget("tasks", name, error)
            raise
        return found

    def _told(self, task: Object, each: float) -> Object:
        """The task, told to the callbacks. :raises TaskTimeout: one of its commands was killed at its end."""
        status = status_of(task)
        succeeded = status.get("state") == "Succeeded"
        for member, nothing in (("stdout", ""), ("stderr", ""), *((("exitCode", 0),) if succeeded else ())):
            status.setdefault(member, nothing)  # ARL's own operator leaves out what is empty or 0
        self._callbacks.task_ended(task, succeeded)
        took = go_seconds(status.get("duration")) or 0.0
        if status.get("exitCode") == TIMED_OUT and took > each - 0.001:  # told in milliseconds
            raise TaskTimeout(f"a command did not end within {each:g} s, and was killed", task)
        return task

    def _forget(self, plural: resources.Plural, name: str, why: BaseException) -> None:
        """Deletes what may be there, on the way out with an exception; unless that says that nothing is."""
        if isinstance(why, ApiException) and 400 <= why.status < 500:
            return
        with suppress(ArlError):
            self._objects.delete(plural, self.namespace, name)

    def __enter__(self) -> Self:
        if self.keep_alive:
            warnings.warn(
                "keep_alive=True: leaving this block does not delete the sandbox, delete_sandbox() does", stacklevel=2
            )
        self.create_sandbox()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.keep_alive:
                self.delete_sandbox()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<SandboxSession {self.sandbox_name or 'without a sandbox'} of {self.pool_ref}>"


def _is_settled(sandbox: Object) -> bool:
    return status_of(sandbox).get("phase") in ("Ready", "Failed")


def _is_over(task: Object) -> bool:
    return status_of(task).get("state") in ("Succeeded", "Failed")


def _commands(steps: Sequence[Mapping[str, Any]]) -> int:
    return sum(step.get("type") == "Command" for step in steps)
