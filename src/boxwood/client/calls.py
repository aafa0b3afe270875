"""Requests of the contract, built and checked; no I/O. Each function's name is the operation that it is for.

Those about files, pools, snapshots and volumes have modules of their own."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

from boxwood.client.errors import BadRequest

STDIN_PIECE = 1024 * 1024  # bytes for a run's standard input per request
WINDOW = 300.0  # seconds for which the server may hold the answer to a run
SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL", "SIGHUP")
VM_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `replay_safe`: repeating it after an unknown outcome does no harm. `patience`: seconds that the
    server may take beyond the client's own timeout. `answers`: the statuses of answers that are not errors."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    replay_safe: bool = False
    patience: float = 0.0
    answers: tuple[int, ...] = (200, 201, 202, 204)
    content: bytes | None = None  # a body that is no JSON


def get(path: str, /, **query: Any) -> Call:
    told = {name: _text(value) for name, value in given(**query).items()}
    return Call("GET", f"{path}?{urlencode(told)}" if told else path, replay_safe=True)


def get_run(vm: str, run_id: str, wait: float) -> Call:
    """`wait`: seconds that the server may wait for the end of the run."""
    call = get(vm_path(vm, "runs", run_id), wait=wait or None)
    return replace(call, patience=wait)


def health() -> Call:
    """A server that is not ready tells of its health with status 503."""
    return Call("GET", "/v1/health", replay_safe=True, answers=(200, 503))


def delete(path: str) -> Call:
    return Call("DELETE", path)


def vm_path(vm: str, *rest: str) -> str:
    """/v1/vms/VM/…, every part percent-encoded as one segment.

    :raises BadRequest: a part that is empty, or that would name another route (`.`, `..`).
    """
    return "/".join(["/v1/vms", *(segment(part) for part in (vm, *rest))])


def segment(part: str) -> str:
    if part in ("", ".", ".."):
        raise BadRequest("bad_request", f"not an id or a name: {part!r}")
    try:
        return quote(part, safe="")
    except UnicodeEncodeError:
        raise BadRequest("bad_request", f"not an id or a name: {part!r}") from None


def fork(
    source: str,
    *,
    name: str | None,
    description: str | None,
    public: bool,
    vcpu: int | None,
    memory_mib: int | None,
    disk_mib: int | None,
    pids: int | None,
    nofile: int | None,
    ttl: float | None,
    network: str | None,
    durable: bool,
    policies: Mapping[str, Any] | None = None,
    command: str | Sequence[str] | None,
    idempotency_key: str | None,
) -> Call:
    """Without a key the call gets one of its own."""
    body = source_member(source)
    sizes = given(vcpu=vcpu, memory_mib=memory_mib, disk_mib=disk_mib, pids=pids, nofile=nofile)
    body |= given(name=name, description=description, public=public or None, resources=sizes or None)
    body |= given(network=network, ttl=ttl, durable=durable or None, policies=policies)
    if command is not None:
        body["command"] = command_text(command)
    return Call("POST", "/v1/fork", body, own_key(idempotency_key), replay_safe=True, patience=60)


def create_run(
    vm: str,
    command: str | Sequence[str],
    *,
    timeout: float | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    stdin: str | bytes | None,
    stdin_open: bool,
    background: bool,
    session: str | int | None,
    idempotency_key: str | None,
) -> Call:
    body: dict[str, Any] = {"command": command_text(command), **given(timeout=number(timeout), cwd=cwd, user=user)}
    if env is not None:
        body["env"] = dict(env)
    if stdin is not None:
        body |= _stdin(stdin)
    if stdin_open:
        if not background:
            raise BadRequest(
                "bad_request", "stdin_open: only with background, for somebody has to write to it meanwhile"
            )
        body["stdin_open"] = True
    if background:
        body["time_to_background"] = 0
    if session is not None:
        body["session_idx" if isinstance(session, int) else "session_id"] = session
    headers = {} if idempotency_key is None else {"idempotency-key": checked_key(idempotency_key)}
    return Call(
        "POST", vm_path(vm, "runs"), body, headers,
        replay_safe=idempotency_key is not None, patience=0.0 if background else WINDOW,
    )  # fmt: skip


def execute(
    vm: str,
    argv: Sequence[str],
    *,
    timeout: float | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    stdin: str | bytes | None,
    stdin_open: bool,
    background: bool,
    idempotency_key: str | None,
) -> Call:
    """A program without a shell.

    :raises BadRequest: nothing to run, or something that is not text.
    """
    if isinstance(argv, str):
        raise BadRequest(
            "bad_request", "a program and its arguments are a sequence of texts; `run` takes text for the shell"
        )
    command_text(argv)
    call = create_run(
        vm, "", timeout=timeout, env=env, cwd=cwd, user=user, stdin=stdin, stdin_open=stdin_open,
        background=background, session=None, idempotency_key=idempotency_key,
    )  # fmt: skip
    body = {"argv": list(argv), **{name: value for name, value in (call.body or {}).items() if name != "command"}}
    return replace(call, body=body)


def streamed(call: Call) -> Call:
    """The same run, told as it happens: with a key of its own, so that it may be asked for again."""
    body = {name: value for name, value in (call.body or {}).items() if name != "time_to_background"}
    path, headers = f"{call.path}?encoding=base64", own_key(None) | dict(call.headers)
    return replace(call, path=path, body=body, headers=headers, replay_safe=True)


def run_events(vm: str, run_id: str, position: str) -> Call:
    """`position`: the id of the last event."""
    return get(vm_path(vm, "runs", run_id, "events"), offset=position, encoding="base64")


def write_stdin(vm: str, run_id: str, data: bytes, offset: int | None, eof: bool) -> Call:
    """`offset`: of the first byte in all that the run has been given; then it does no harm if it comes twice."""
    query = urlencode({**({} if offset is None else {"offset": offset}), **({"eof": "true"} if eof else {})})
    path = vm_path(vm, "runs", run_id, "stdin") + (f"?{query}" if query else "")
    return Call("POST", path, replay_safe=offset is not None or not data, content=data)


def signal(vm: str, name: str, session_id: str | None) -> Call:
    if name not in SIGNALS:
        raise BadRequest("bad_request", f"not a signal that can be sent: {name!r}; there are {', '.join(SIGNALS)}")
    return Call("POST", vm_path(vm, "runs"), {"signal": name, **given(session_id=session_id)})


def source_member(source: str) -> dict[str, Any]:
    """What has the shape of an id is one: no name has it."""
    return {"source_vm_id": source.upper()} if VM_ID.fullmatch(source) else {"source_vm_name": source}


def update_vm(vm: str, sizes: Mapping[str, int | None], **changes: Any) -> Call:
    """What is None stays as it is."""
    return Call("PATCH", vm_path(vm), given(resources=given(**sizes) or None, **changes))


def create_session(vm: str, env: Mapping[str, str] | None, cwd: str | None, kind: str | None = None) -> Call:
    body = given(env=dict(env) if env is not None else None, cwd=cwd, kind=kind)
    return Call("POST", vm_path(vm, "sessions"), body)


def pty_path(
    vm: str,
    session_id: str,
    *,
    columns: int,
    rows: int,
    command: str | Sequence[str] | None,
    persist: bool,
    idle_timeout: float | None,
    term: str | None,
) -> str:
    """Of the WebSocket. A command is text for the shell, or a program and its arguments."""
    argv = None
    if command is not None:
        argv = json.dumps(["sh", "-c", command] if isinstance(command, str) else list(command))
    query = given(
        cols=columns, rows=rows, argv=argv, persist=_text(persist), cancel_ttl_secs=number(idle_timeout), term=term
    )  # fmt: skip
    return f"{vm_path(vm, 'sessions', session_id, 'pty')}?{urlencode(query)}"


def create_key(name: str | None, ttl_default: float | None, ttl_most: float | None, expires_in: float | None) -> Call:
    body = given(name=name, ttl_default=ttl_default, ttl_most=ttl_most, expires_in=expires_in)
    return Call("POST", "/v1/api-keys", body)


def revoke_key(key_id: str) -> Call:
    return delete(f"/v1/api-keys/{segment(key_id)}")


def import_image(name: str, path: str, replace: bool) -> Call:
    """A big root filesystem takes minutes: the server may take an hour."""
    body = {"name": name, "path": path, **given(replace=replace or None)}
    return Call("POST", "/boxwood/images", body, patience=3600)


def show_storage() -> Call:
    """Layers that nobody has measured yet take a minute at most."""
    return Call("GET", "/boxwood/storage", patience=300)


def verify_storage() -> Call:
    return Call("POST", "/boxwood/storage/verify", {}, patience=3600)


def collect_storage(dry_run: bool) -> Call:
    return Call("POST", "/boxwood/storage/gc", given(dry_run=dry_run or None), patience=3600)


def down() -> Call:
    return Call("POST", "/boxwood/down", {}, patience=300)


def command_text(command: str | Sequence[str]) -> str:
    """Shell text as it is; a sequence of arguments quoted for the shell.

    :raises BadRequest: nothing to run, or something that is not text.
    """
    if isinstance(command, str):
        return command
    words: list[object] = list(command)
    texts = [word for word in words if isinstance(word, str)]
    if not texts or len(texts) != len(words):
        raise BadRequest("bad_request", "a command is text for the shell, or a sequence of arguments, all of them text")
    return shlex.join(texts)


def own_key(key: str | None) -> dict[str, str]:
    """The header with this idempotency key, or with one that no other request has."""
    return {"idempotency-key": checked_key(key if key is not None else f"boxwood-{secrets.token_hex(16)}")}


def checked_key(key: str) -> str:
    if not 1 <= len(key) <= 64 or not key.isascii() or not key.isprintable():
        raise BadRequest("bad_request", "an idempotency key has 1 to 64 printable ASCII characters")
    return key


def _stdin(data: str | bytes) -> dict[str, str]:
    if isinstance(data, str):
        return {"stdin": data, "stdin_encoding": "utf-8"}
    return {"stdin": b64encode(data).decode("ascii"), "stdin_encoding": "base64"}


def number(seconds: float | None) -> float | int | None:
    """A whole number as one: servers of the contract take no other."""
    whole = seconds is not None and float(seconds).is_integer()
    return int(seconds) if seconds is not None and whole else seconds


def given(**members: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
