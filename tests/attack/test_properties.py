"""Whatever a client sends, it is answered in the shape of the protocol that it speaks, and nothing else happens
(attacks.md, items 17, 31 and 32).

Requests are made of the route tables, with members and parameters that exist and values that nobody expects, and go to
the application as the bytes that a socket would bring. Each must be answered without an error of ours, without an
exception in the log, without a control character in a log line, and leave what is another organisation's alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import contract
import kube
from amounts import amount
from boxwood.core.config import Config
from boxwood.core.core import Core
from boxwood.core.errors import NotFound
from boxwood.core.model import Caller, ForkRequest, RunRequest
from boxwood.dialects import arl_gateway
from boxwood.dialects.agentkernel import execs, files, runs, sandboxes
from boxwood.dialects.arl_gateway import create, execute, pools, rewind, sessions
from boxwood.images import host
from boxwood.server.app import App
from boxwood.server.exchange import Operation
from boxwood.server.log import PlainFormatter
from boxwood.server.routes import DIALECTS, OPERATIONS
from boxwood.store import keys as key_rows
from fakes import fake_engine
from wellformed import BODIES, KUBERNETES, MORE

BOUNDED = settings(
    max_examples=amount(50, 150), deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
EVERY = tuple(OPERATIONS) + tuple(one for dialect in DIALECTS for one in dialect.operations)
Headers = Sequence[tuple[bytes, bytes]]
MODULES = (create, execute, pools, rewind, sessions, execs, files, runs, sandboxes, arl_gateway)

# What comes in


def members() -> tuple[str, ...]:
    """Every member that some body or query may have, and those of Kubernetes' objects."""
    structs = [one.query for one in EVERY if one.query is not None]
    for one in EVERY:
        structs += list(getattr(one.body, "__args__", ())) or ([one.body] if one.body is not None else [])
    for module in MODULES:
        structs += [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    named = {name for struct in structs for name in getattr(struct, "__struct_encode_fields__", ())}
    kubernetes = (
        "metadata spec status name namespace labels annotations generateName resourceVersion finalizers uid replicas "
    )
    kubernetes += (
        "template containers image env resources poolRef sandboxRef steps type command content path retained keepAlive"
    )
    return tuple(
        sorted(named | set(kubernetes.split()) | {"watch", "limit", "continue", "fieldSelector", "labelSelector"})
    )


MEMBERS = members()
NASTY = (
    "", ".", "..", "../..", "../../../../etc/passwd", "/", "//", "/etc/passwd", "/proc/self/root/etc/shadow", "a/../../b",
    "a\0b", "\0", "a\nb", "a\r\nset-cookie: x=1", "\r\n\r\nHTTP/1.1 200 OK", "\x1b[2J\x1b]0;owned\x07", "\x1b]52;c;aGk=\x07",
    "\u202egnp.exe", "\u2028", "\ufeff", "\x7f\x80\x9b", "%00", "%2e%2e%2f", "%0d%0a", "'; DROP TABLE vms; --", "$(id)", "`id`",
    "-rf", "--help", "a b", "ü", "名前", "\U0001f4a9", "a" * 65, "a" * 300, "x" * 5000, "{{7*7}}", "${jndi:ldap://x}", "null",
    "true", "0", "-1", "1e999", "NaN", "Infinity", "99999999999999999999", "1_000", "0x10", "٣", "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999+00:00", "*", "theirs", "default", "ubuntu", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV_x", "ſ", "K", "İ", "ubuntu:latest", "<script>alert(1)</script>",
)  # fmt: skip
texts = st.sampled_from(NASTY) | st.text(max_size=12) | st.text(st.characters(max_codepoint=0x9F), max_size=12)
numbers = st.integers() | st.sampled_from([0, -1, 1, 1 << 31, 1 << 32, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**400])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS) | texts, inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(MEMBERS), values, max_size=6)
# Bodies that are no JSON, or JSON that parsers disagree about.
BYTES = (
    b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"name":"a","name":"b"}', b'{"name":"\\ud800"}', b'{"name":"\\udc00\\ud800"}',
    b'{"command":"\\ud800"}', b'{"name":"\xed\xa0\x80"}', b'{"n\\u0000ame":1}', b'{"command":"a\\u0000b"}',
    b'{"timeout":1e999}', b'{"timeout":-0.0}', b'{"timeout":1E400}', b'{"replicas":' + b"9" * 5000 + b"}", b"[" * 20000,
    b'{"a":' * 5000, b'{"spec":' + b"[" * 900 + b"]" * 900 + b"}", b'{"labels":' + b'{"a":' * 400 + b"1" + b"}" * 401,
    b'{"metadata":{"name":"x","labels":' + b'{"a":' * 300 + b"1" + b"}" * 302, b'{"op":"read","op":"write","path":"/"}',
    b'\xef\xbb\xbf{}', b"{}{}", b"{},", b"// x\n{}", b'{"a":NaN}', b"'", b"--x\r\n",
)  # fmt: skip
broken = (
    objects.map(lambda value: json.dumps(value).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(BYTES)
    | st.binary(max_size=40)
)
HEADERS = (
    b"idempotency-key", b"user-agent", b"content-type", b"accept", b"x-arl-path", b"x-arl-sha256", b"prefer", b"content-length",
    b"range", b"expect", b"x-forwarded-for", b"x-forwarded-host", b"if-match", b"origin", b"cookie", b"te", b"last-event-id",
)  # fmt: skip
raw = st.binary(max_size=20) | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
header_lists = st.lists(st.tuples(st.sampled_from(HEADERS), raw), max_size=8, unique_by=lambda pair: pair[0])
queries = st.lists(st.tuples(st.sampled_from(MEMBERS).map(str.encode) | raw, raw), max_size=3)
SERVED = [one for one in EVERY if one.name != "down" and not one.refused]
operations = st.integers(0, 7).flatmap(
    lambda n: st.sampled_from(SERVED if n else [one for one in EVERY if one.refused])
)
# After these, what later requests name would not be there any more: nothing that is there stands in their paths.
ENDING = {"akStop", "arlSuspend", "arlDestroyPool", "arlDrainPool", "arlEndExperiment", "claimWarmPool"}
OWN = {
    "id": ["VM", "mine"], "name": ["mine"], "sid": ["SESSION"], "run_id": ["RUN"], "namespace": ["default"], "path": ["tmp/f"],
    "experiment": ["mine"], "operation": ["mine"],
}  # fmt: skip


@st.composite
def paths(draw: Any, operation: Operation) -> bytes:
    """Its path, with what is there, or anything, in place of its parameters; sometimes another slash."""
    prefix = draw(st.sampled_from(operation.prefixes))
    ends = operation.method == "DELETE" or operation.name in ENDING

    def filled(found: re.Match[str]) -> str:
        own = ["ARL"] if operation.name.startswith("arl") and found[1] == "id" else OWN.get(found[1], [])
        if operation.name.startswith("ak") and found[1] == "name":
            own = ["box"]
        if own and not ends and draw(st.integers(0, 3)):
            return str(draw(st.sampled_from(own)))
        value = draw(raw)
        return quote_from_bytes(value, safe=draw(st.sampled_from(["", "/:"])))

    made = re.sub(r"\{(\w+)\}", filled, prefix + operation.path)
    odd = [made + "/", "/" + made, made.replace("/", "//"), made + "%", made + "/.."]
    return (made if draw(st.integers(0, 5)) else draw(st.sampled_from(odd))).encode()


@st.composite
def bodies(draw: Any, operation: Operation) -> bytes:
    """What it takes, with something changed, put in or left out; or what nothing takes."""
    kubernetes = KUBERNETES.items() if operation.name.startswith("arlKube") else ()
    kind = next((body for plural, body in kubernetes if f"/{plural}" in operation.path), None)
    known = kind or BODIES.get(operation.name)
    if known is not None and operation.name in MORE:
        more = MORE[operation.name]
        known = known | {name: more[name] for name in sorted(more) if draw(st.booleans())}
    if known is None or not draw(st.integers(0, 4)):
        return draw(broken)
    body = json.loads(json.dumps(known).replace('"theirs"', '"mine"').replace('"NAME"', '"mine"'))
    for _ in range(draw(st.integers(0, 2))):
        body = draw(changed(body))
    return json.dumps(body).encode()


@st.composite
def changed(draw: Any, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: draw(changed(value[name]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [*value[:-1], draw(changed(value[-1]))]
    if isinstance(value, dict) and draw(st.booleans()):
        return {**value, draw(st.sampled_from(MEMBERS) | texts): draw(values)}
    return draw(values)


# What goes out


@dataclass
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def send(
    app: Any, method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> Answer:
    """To the application as a server would hand it on. The client hangs up after a while, for some answers wait for
    something; if it had no answer by then, it asks once more and has patience: this machine may be slow."""
    answer = await sent(app, method, path, query, headers, body, 0.5)
    return answer if answer.status else await sent(app, method, path, query, headers, body, 15)


async def sent(
    app: Any,
    method: str,
    path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    patience: float,
) -> Answer:
    scope = {
        "type": "http", "method": method, "path": path.decode("latin-1"), "raw_path": path, "query_string": query,
        "headers": headers, "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    asked, gone = [{"type": "http.request", "body": body}], asyncio.Event()
    answer = Answer(0, [], b"")

    async def receive() -> Any:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def take(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], list(message["headers"])
        else:
            answer.body += message.get("body", b"")

    asyncio.get_running_loop().call_later(patience, gone.set)
    async with asyncio.timeout(20):
        await app(scope, receive, take)
    return answer


def check(operation: Operation, path: bytes, answer: Answer, agent: str) -> None:
    where = f"{operation.method} {path!r}: {answer.status} {answer.body[:300]!r}"
    assert answer.status not in (0, 500), where
    for name, value in answer.headers:
        assert not re.search(rb"[\x00-\x1f\x7f]", name + value), where
    if answer.status < 400:
        return
    shown = json.loads(answer.body)
    head = path.lstrip(b"/").partition(b"/")[0].decode("latin-1")
    dialect = next((one.name for one in DIALECTS if head in one.heads), "")
    if dialect == "agentkernel":
        assert shown["success"] is False and isinstance(shown["error"], str) and shown["error"], where
    elif dialect == "arl-gateway":
        assert set(shown) <= {"error", "detail"} and shown["error"], where
    elif dialect == "arl-kubernetes":
        kube.check(shown, answer.status)
    elif operation.name == "health" and "error" not in shown:
        assert shown["status"] == "unavailable", where
    elif not agent.startswith("python-httpx/"):
        assert not contract.violations({"error": shown["error"]}, "ErrorResponse"), where


class World:
    """A server with an engine in memory, in a loop of its own; and somebody who has a key and a VM, but not the
    operator's."""

    def __init__(self, place: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.place = place
        self.caplog = caplog
        self.machine = fake_engine.Machine()
        self.images = dict(self.machine.images)
        self.runner = asyncio.Runner()
        self.unheard: list[Any] = []
        self.seen: dict[str, set[int]] = defaultdict(set)
        self.runner.get_loop().set_exception_handler(lambda _, context: self.unheard.append(context))
        self.app = self.runner.run(self._start())
        self.outside = sorted(path.name for path in place.iterdir())

    async def _start(self) -> App:
        images = self.place / "images"
        (images / fake_engine.IMAGE / "upper").mkdir(parents=True)
        core = await Core.open(Config(self.place / "data", images), fake_engine.FakeEngine(self.machine))
        app = App(core)
        await core.goldens.ensure_host()
        await app.start()
        root = await core.keys.authenticate((self.place / "data" / "root.key").read_text().strip())
        self.theirs = (await core.vms.fork(root, ForkRequest(source_name="ubuntu", name="theirs"))).vm_id
        await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
        made = await core.keys.create(Caller("OTHER", "other", "", "admin"))
        assert made.key is not None
        self.key = made.key
        self.core, self.vm = core, ""
        await self._vm_again()
        self.arl = "ubuntu-0123456789abcdef"
        self.arl = (await self._made(app, "arl/v1/sessions", {"image": "ubuntu"}))["id"]
        await self._made(app, "sandboxes", {"name": "box"})
        await self._made(app, f"arl/v1/sessions/{self.arl}/execute", {**BODIES["arlExecute"], "operationID": "mine"})
        await self._made(app, "arl/v1/managed/sessions", {"image": "ubuntu", "experimentId": "mine"})
        for plural, body in KUBERNETES.items():
            named = json.loads(json.dumps(body).replace('"theirs"', '"mine"'))
            await self._made(app, f"k8s/apis/arl.infra.io/v1alpha1/namespaces/default/{plural}", named)
        return app

    async def _made(self, app: App, path: str, body: Any) -> Any:
        answer = await send(app, "POST", f"/{path}".encode(), b"", self._own(), json.dumps(body).encode())
        assert answer.status in (200, 201), answer
        return json.loads(answer.body)

    def _own(self) -> list[tuple[bytes, bytes]]:
        return [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + self.key.encode())]

    async def _vm_again(self) -> None:
        """A VM as there was, if what was asked for has ended, renamed or sealed it."""
        caller = await self.core.keys.authenticate(self.key)
        try:
            vm = await self.core.vms.get(caller, self.vm)
            if vm.name == "mine" and not vm.immutable and not vm.stopped:
                return
            await self.core.vms.delete(caller, self.vm)
        except NotFound:
            pass
        self.vm = (await self.core.vms.fork(caller, ForkRequest(source_name="ubuntu", name="mine"))).vm_id
        self.session = (await self.core.sessions.create(caller, self.vm)).session_id
        self.run = (await self.core.runs.start(caller, self.vm, RunRequest("put /secret x"))).run_id

    def close(self) -> None:
        self.runner.run(self.core.close())
        self.runner.close()

    def __call__(
        self, operation: Operation, path: bytes, query: bytes = b"", headers: Headers = (), body: bytes = b"{}"
    ) -> None:
        """Nothing but what is ours changes, and the log stays one line each."""
        self.caplog.clear()
        for mark, ident in (("VM", self.vm), ("SESSION", self.session), ("RUN", self.run), ("ARL", self.arl)):
            path = re.sub(rb"(?<=/)" + mark.encode() + rb"(?=/|$)", ident.encode(), path)
        body = body.replace(b'"VM"', b'"' + (self.arl if operation.name == "arlReplay" else self.vm).encode() + b'"')
        answer = self.runner.run(send(self.app, operation.method, path, query, [*self._own(), *headers], body))
        self.seen[operation.name].add(answer.status)
        check(operation, path, answer, dict(headers).get(b"user-agent", b"").decode("latin-1"))
        self._check_log()
        self._check_places()
        self.runner.run(self._vm_again())

    def _check_log(self) -> None:
        formatter = PlainFormatter("%(levelname)s %(message)s")
        for record in self.caplog.records:
            assert record.levelno < logging.ERROR or not record.name.startswith("boxwood"), formatter.format(record)
            for line in formatter.format(record).split("\n  "):
                assert line.isprintable(), line
        assert not self.unheard

    def _check_places(self) -> None:
        assert self.machine.images == self.images and self.theirs not in self.machine.boxes
        assert sorted(path.name for path in self.place.iterdir()) == self.outside
        assert {path.name for path in (self.place / "data").iterdir()} <= OURS
        for path in (self.place / "data" / "uploads").iterdir():
            assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", path.name) and path.is_file()


OURS = {
    "boxwood.db",
    "boxwood.db-wal",
    "boxwood.db-shm",
    "root.key",
    "secret",
    "secrets.key",
    "lock",
    "spool",
    "uploads",
    "log",
    "kubernetes",
}


@pytest.fixture
def world(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    image = host.HostImage(fake_engine.IMAGE, "fingerprint", 0, 0, 0, 0.0)
    monkeypatch.setattr(host, "ensure", lambda directory, progress, **settings: image)
    made = World(tmp_path, caplog)
    yield made
    made.close()


@BOUNDED
@given(data=st.data())
def test_paths(world, data):
    operation = data.draw(operations)
    world(operation, data.draw(paths(operation)))


@BOUNDED
@given(data=st.data(), query=queries | st.binary(max_size=60))
def test_queries(world, data, query):
    operation = data.draw(operations)
    text = query if isinstance(query, bytes) else b"&".join(
        quote_from_bytes(name).encode() + b"=" + quote_from_bytes(value).encode() for name, value in query
    )  # fmt: skip
    world(operation, data.draw(paths(operation)), text)


@settings(BOUNDED, max_examples=amount(60, 180))
@given(data=st.data(), headers=header_lists)
def test_headers(world, data, headers):
    operation = data.draw(operations)
    world(operation, data.draw(paths(operation)), b"", headers, data.draw(bodies(operation)))


@settings(BOUNDED, max_examples=amount(60, 180))
@given(data=st.data())
def test_bodies(world, data):
    operation = data.draw(st.sampled_from([one for one in SERVED if one.method != "GET"]))
    world(
        operation,
        data.draw(paths(operation)),
        b"",
        [(b"content-type", b"application/json")],
        data.draw(bodies(operation)),
    )


@BOUNDED
@given(said=st.lists(texts, max_size=4), argument=texts, raised=st.booleans())
def test_log_lines(said, argument, raised):
    """Whatever a box or a client says: one record is one line, or its other lines are set in, so that none looks like
    another record; and no terminal that shows the log obeys any of it."""
    error = None
    if raised:
        try:
            raise ValueError(argument)
        except ValueError as made:
            error = (ValueError, made, made.__traceback__)
    record = logging.LogRecord(
        "boxwood", logging.INFO, __file__, 1, "\n".join(said).replace("%", "%%") + " %s", (argument,), error
    )
    first, *more = PlainFormatter("2026 INFO %(message)s").format(record).split("\n")
    assert first.startswith("2026 INFO ") and all(line.startswith("  ") for line in more)
    assert all(line.isprintable() for line in (first, *more))
