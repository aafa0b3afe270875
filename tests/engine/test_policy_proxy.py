"""The request layer as root: boxes' requests through the proxy, to servers in a namespace of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from boxfixtures import Runner
from boxwood.core.config import Config
from boxwood.core.trust import OWN, VARIABLES, trust
from boxwood.engine.api import GuestError
from boxwood.engine.host import HostEngine
from boxwood.engine.network.keeper import user_of
from boxwood.engine.policies import parse
from boxwood.engine.proxy.authority import make
from boxwood.engine.proxy.questions import Question
from boxwood.server import main
from guestports import Guest
from internet import EXCEPTED, Internet
from netfixtures import Wired, number_of
from serving import Running, running

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]
SECRET = "s3cret-value-of-the-engine-test"
HOST = {"hosts": ["public.test"]}
ONLY = {"api": {"action": "allow", "match": {**HOST, "paths": ["/ok"], "methods": ["GET"]}}}
WITH_KEY = {
    "key": {
        "action": {"rewrite": {"headers": {"authorization": "Bearer ${secret:KEY}"}}},
        "match": {**HOST, "ports": [8443]},
    },
    "rest": {"action": "deny"},
}
TALK = b"""
import http.client, os, time
connection = http.client.HTTPConnection("public.test", 8081)
connection.auto_open = 0
connection.connect()
def ask():
    try:
        connection.request("GET", "/ok")
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return "closed"
print(ask())
open("/tmp/asked", "w").close()
while not os.path.exists("/tmp/changed"):
    time.sleep(0.01)
print(ask())
"""
LISTENS = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.say(" ".join((self.path, body, self.headers["host"], self.headers["x-passed"])))
    def do_GET(self):
        self.say("here")
    def say(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""
PLACE = Path(__file__).parent.parent / "webserver.py"


def policies(rules: dict[str, Any]) -> Any:
    listed = enumerate(rules.items())
    return parse({name: {"type": "outbound", "priority": 1000 - place, **rule} for place, (name, rule) in listed})


class Web:
    """Servers in the test's internet that say what they were told: TLS on 8443, plain on 8081."""

    def __init__(self, process: subprocess.Popen[str], roots: str) -> None:
        self._process = process
        self.roots = roots

    def seen(self) -> list[dict[str, Any]]:
        """All requests since the last question, in order."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("seen\n")
        self._process.stdin.flush()
        found: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture(scope="module")
def web(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    roots, key = make()
    directory = tmp_path_factory.mktemp("web")
    (directory / "ca.crt").write_bytes(roots)
    (directory / "ca.key").write_bytes(key)
    command = ["ip", "netns", "exec", world.name, sys.executable, str(PLACE), str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield Web(process, roots.decode())
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
async def engine(
    world: Internet, web: Web, tmp_path_factory: pytest.TempPathFactory, images: Path
) -> AsyncIterator[HostEngine]:
    """One for all: each test has a VM of its own."""
    data = tmp_path_factory.mktemp("proxied") / "data"
    made = HostEngine(data, images, resolv_conf=world.resolv_conf, proxy_roots=web.roots)
    made.account(lambda vm, usage: None)
    await made.start()
    try:
        yield made
    finally:
        await made.shutdown()


@pytest.fixture
def data(engine: HostEngine) -> Path:
    return engine._data


@pytest.fixture
async def vm(engine: HostEngine, golden: str, web: Web) -> AsyncIterator[Runner]:
    runner = Wired(engine, golden)
    await runner.boot()
    certificate = await engine.authority()
    await runner.box.write_file("/tmp/boxwood.crt", certificate.encode())
    web.seen()
    yield runner
    await runner.box.kill()


async def police(vm: Runner, rules: dict[str, Any], **secrets: str) -> None:
    await vm.engine.police(vm.box, policies(rules), lambda: secrets)


async def curl(vm: Runner, url: str, arguments: str = "") -> str:
    """The status and the answer."""
    command = f"curl -sS -m 20 --cacert /tmp/boxwood.crt -w '%{{http_code}}' {arguments} {url} 2>&1"
    return (await vm.run(command)).text


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_requests_are_judged(vm: Runner, web: Web, version: str) -> None:
    await police(vm, ONLY)
    assert (await curl(vm, "https://public.test:8443/ok", version)).endswith("200")
    said = await curl(vm, "https://public.test:8443/no", version)
    assert said.endswith("403") and '"code": "forbidden"' in said
    assert (await curl(vm, "http://public.test:8081/ok")).endswith("200")
    assert (await curl(vm, "http://public.test:8081/ok", "-X POST -d x")).endswith("403")
    assert [(seen["target"], seen["tls"]) for seen in web.seen()] == [("/ok", True), ("/ok", False)]
    usage = await vm.engine.usage(vm.box.vm_id)
    told = [(denial.protocol, denial.name) for denial in usage.denials]
    assert told.count(("http", "public.test")) == 2 and usage.denied >= 2


async def test_before_the_first_packet_and_on_what_is_open(vm: Runner, web: Web) -> None:
    await police(vm, ONLY)
    await vm.box.write_file("/tmp/talk.py", TALK)
    asking = asyncio.ensure_future(vm.run("python3 /tmp/talk.py"))
    while not await _there(vm, b"/tmp/asked"):
        await asyncio.sleep(0.05)
    await police(vm, {"no": {"action": "deny", "match": {**HOST, "paths": ["/ok"]}}})
    await vm.box.write_file("/tmp/changed", b"")
    first, second = (await asking).text.split()
    assert first == "200" and second in ("403", "closed")
    assert len(web.seen()) == 1


async def _there(vm: Runner, path: bytes) -> bool:
    try:
        await vm.box.files.stat(path, follow=True)
    except GuestError:
        return False
    return True


async def test_a_secret_is_sent_and_is_nowhere_in_the_box(vm: Runner, web: Web, data: Path) -> None:
    await police(vm, WITH_KEY, KEY=SECRET)
    said = await curl(vm, "https://public.test:8443/echo", "-v")
    assert said.endswith("200") and SECRET not in said
    assert [seen["headers"]["authorization"] for seen in web.seen()] == [f"Bearer {SECRET}"]
    halves = SECRET[:10], SECRET[10:]  # so that the search does not find itself
    search = f's={halves[0]}; grep -rasl "$s{halves[1]}" /etc /tmp /run /root /home /var /proc/*/environ /proc/*/cmdline; env'
    assert SECRET not in (await vm.run(search)).text
    usage = await vm.engine.usage(vm.box.vm_id)
    assert SECRET not in repr(usage)
    for root, _, names in os.walk(data):
        for name in names:
            path = Path(root) / name
            if path.is_file() and not path.is_symlink():
                assert SECRET.encode() not in path.read_bytes(), path


async def test_a_secret_that_changes_is_what_the_next_request_gets(vm: Runner, web: Web) -> None:
    values = {"KEY": SECRET}
    await vm.engine.police(vm.box, policies(WITH_KEY), lambda: values)
    for value in (SECRET, "another-value-altogether"):
        values["KEY"] = value
        await vm.engine.renew_secrets(lambda ident: ident == vm.box.vm_id)
        assert (await curl(vm, "https://public.test:8443/echo")).endswith("200")
        assert [seen["headers"]["authorization"] for seen in web.seen()] == [f"Bearer {value}"]


async def test_what_goes_around(vm: Runner, web: Web) -> None:
    """QUIC, other ports, other names for the same address, and addresses that are nobody's business."""
    await police(vm, WITH_KEY, KEY=SECRET)
    assert (await curl(vm, "http://public.test:8081/")).endswith("000")  # port 80: the rule below
    assert (await curl(vm, "https://other.test:8443/", "--connect-to ::93.184.215.14:8443")).endswith("000")
    assert (await curl(vm, "https://public.test:8443/", "-k -H 'Host: other.test'")).endswith("421")
    assert (await curl(vm, "https://metadata.test/")).endswith("000")
    assert (await curl(vm, "http://198.19.0.1:8008/")).endswith("000")
    assert web.seen() == []


async def test_private_places_stay_closed(vm: Runner, web: Web) -> None:
    await police(vm, {"all": {"action": "allow", "match": {"methods": ["GET"]}}})
    for address in ("10.99.0.1", "169.254.169.254", "192.168.77.7", "127.0.0.1", "198.19.77.7"):
        assert (await curl(vm, f"http://{address}/ok")).endswith("000")
    assert web.seen() == []


async def test_the_proxy_is_a_user_of_its_own_and_comes_again(vm: Runner, web: Web, data: Path) -> None:
    await police(vm, WITH_KEY, KEY=SECRET)
    assert (await curl(vm, "https://public.test:8443/")).endswith("200")
    user = user_of(number_of(data))
    (pid,) = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _uid(entry) == user]
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^CapPrm:\s+0+$", status, re.MULTILINE) and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    for name in ("ca.key", "ca.crt"):
        assert (data / "proxy" / name).stat().st_mode & 0o777 == 0o600
    os.kill(pid, signal.SIGKILL)
    assert (await curl(vm, "https://public.test:8443/again", "--retry 3 --retry-all-errors")).endswith("200")
    assert [seen["headers"]["authorization"] for seen in web.seen()] == [f"Bearer {SECRET}"] * 2


def _uid(entry: Path) -> int:
    try:
        return entry.stat().st_uid if entry.stat().st_uid else _real(entry)
    except OSError:
        return -1


def _real(entry: Path) -> int:
    """What is not dumpable is root's in /proc."""
    return int(re.search(r"^Uid:\s+(\d+)", (entry / "status").read_text(), re.MULTILINE)[1])  # type: ignore[index]


TOOLS = {
    "curl": "curl -sS https://public.test:8443/ok",
    "python": "python3 -c \"import urllib.request as u; print(u.urlopen('https://public.test:8443/ok').read().decode())\"",
    "openssl": "printf 'GET /ok HTTP/1.1\\r\\nHost: public.test\\r\\n\\r\\n' | timeout 20 openssl s_client -quiet -verify_return_error "
    "-no_ign_eof -connect public.test:8443 -servername public.test 2>&1; :",
    "node": "node -e \"require('https').get('https://public.test:8443/ok', r => r.pipe(process.stdout))\"",
    "git": "git ls-remote https://public.test:8443/ok 2>&1; :",
}


async def test_programs_in_the_box_trust_it(vm: Runner, web: Web) -> None:
    """Each of those that the image has: before it is told, and afterwards."""
    await police(vm, {"api": {"action": "allow", "match": {**HOST, "paths": ["/ok"]}}})
    there = [tool for tool in TOOLS if (await vm.run(f"command -v {tool.replace('python', 'python3')}")).code == 0]
    assert {"curl", "python", "openssl"} <= set(there)
    for tool in there:
        await vm.run(TOOLS[tool])
    assert web.seen() == []
    for _ in range(2):
        await trust(vm.box, await vm.engine.authority())
    assert (await vm.run(f"grep -c . {OWN}")).code == 0
    await vm.run("export " + " ".join(f"{name}={value}" for name, value in VARIABLES.items()))  # as sessions have them
    reached = {}
    for tool in there:
        said = (await vm.run(TOOLS[tool])).text
        reached[tool] = [seen["target"].partition("/info")[0] for seen in web.seen()] or said
    assert all(found[:1] == ["/ok"] for found in reached.values()), reached


async def test_a_gate_of_what_comes_in(
    world: Internet, web: Web, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose boxes have no network: router and proxy come when a gate needs them. It is asked over verified TLS,
    with a secret that the VM does not get, and not at what the operator has opened for boxes, nor at what is private."""
    engines = []

    def make(*places: Any, **settings: Any) -> HostEngine:
        engines.append(HostEngine(*places, **settings, resolv_conf=world.resolv_conf, proxy_roots=web.roots))
        return engines[0]

    monkeypatch.setattr(main, "HostEngine", make)
    config = Config(
        tmp_path / "data", images, port=0, network="none", network_allow=(f"{EXCEPTED}:8080",), ready_boxes=0
    )
    web.seen()
    async with running((config, None)) as server:
        vm = await server.fork()
        await server.http.post(f"/v1/vms/{vm}/runs", json={"command": f"python3 -c '{LISTENS}'", "background": True})
        port = Guest(server, vm)
        while (await port.get()).status_code == 502:  # until it listens
            pass
        assert await gated(server, vm, "https://public.test:8443") == (
            200,
            f"/in b {vm.lower()}-8080.localhost:{server.port} yes",
        )
        (seen,) = web.seen()
        assert (seen["method"], seen["target"]) == ("POST", f"/may?key={SECRET}&at=/in")
        assert seen["headers"]["x-who"] == "127.0.0.1" and seen["tls"]
        status, said = await gated(server, vm, "https://public.test:8443", allow_on_status=[204])
        assert status == 403 and "its gate said 200" in said and SECRET not in said
        web.seen()
        for name in ("metadata", "chain", "excepted"):
            asked = Question(
                f"http://{name}.test:8080", "GET", "/", (), b"", (200,), deny_on_timeout=False, timeout_ms=20_000
            )
            refusal = await engines[0].ask_gate(asked)
            assert refusal in ("its gate has no address on the internet", "its gate could not be asked"), name
        assert web.seen() == []
        assert (await server.http.post("/boxwood/down")).status_code == 200
        await server.task


async def gated(server: Running, vm: str, host: str, **more: Any) -> tuple[int, str]:
    """What a stranger gets at a port that a gate guards."""
    gate = {
        "host": host, "allow_on_status": [200], "method": "POST", "body": "$body", "path": "/may?key=${secret:KEY}&at=$path",
        "headers": {"x-who": "${header:x-forwarded-for}"}, **more,
    }  # fmt: skip
    rule = {
        "type": "inbound", "priority": 1, "match": {"ports": [8080], "body_contains": ["b"]}, "auth": "open",
        "action": {"gate": gate, "rewrite": {"headers": {"x-passed": "yes"}}},
    }  # fmt: skip
    policies = {"rules": {"door": rule}, "secrets": {"KEY": SECRET}}
    assert (await server.http.patch(f"/v1/vms/{vm}", json={"policies": policies})).status_code == 200
    answer = await Guest(server, vm).get("/in", "POST", content=b"b", key=False)
    return answer.status_code, answer.text
