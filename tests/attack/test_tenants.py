"""Two organisations on one server: whoever has the other's key reaches nothing (attacks.md, item 30).

Made of the route tables: a route that is added is attacked from then on, and one whose parameters are new fails here
until somebody says what of the victim's they name. Each refusal must be word for word what is said of a thing that
nobody has, so that it does not tell whether there is one. The same requests with the victim's own key reach it: that
is the probe.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest

from boxwood.dialects.agentkernel.words import uuid_of
from boxwood.server.exchange import Operation
from boxwood.server.routes import DIALECTS, OPERATIONS
from fakes import release
from kube import Kube
from wellformed import BODIES, KUBERNETES

# What names nothing of the victim's, but everything of whoever asks: it is answered, of the asker's own world.
OWN_WORLD = {
    "akCreate", "akRun", "akRunStream", "akBatchRun", "arlCreatePool", "arlManaged", "arlExperiment", "arlEndExperiment",
    "createApiKey", "arlDrainPool", "arlDestroyPool", "createFilesystem",
    "importVm", "setSecret",
}  # fmt: skip
# … and what is the same for everybody, or is there for nobody.
EVERYBODYS = {
    "/api/v1/namespaces/{name}",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", "/api/v1/namespaces/{name}/events",
    "/api/v1/namespaces/{name}/services", "/api/v1/namespaces/{namespace}/pods/{name}/exec",
}  # fmt: skip
NAMED_BY_BODY = {"fork", "createWarmPool", "arlCreate", "legacyForkByName"}
NAMING_A_FILE = {"readContent", "writeContent", "syncStream"}  # in their queries
ABSENT = {
    "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "run_id": "01ARZ3NDEKTSV4RRFFQ69G5FAW", "sid": "01ARZ3NDEKTSV4RRFFQ69G5FAX",
    "api_key_id": "01ARZ3NDEKTSV4RRFFQ69G5FAY", "upload_id": "01ARZ3NDEKTSV4RRFFQ69G5FAZ", "name": "nobodys",
    "uuid": "01563e3a-b5d3-d676-4c61-efb99302bd5b", "operation": "nobodys", "experiment": "nobodys",
    "namespace": "default", "path": "secret", "rest": "x", "port": "1", "filesystem_id": "01ARZ3NDEKTSV4RRFFQ69G5FAT",
    "mount_id": "01ARZ3NDEKTSV4RRFFQ69G5FAS", "sync_id": "01ARZ3NDEKTSV4RRFFQ69G5FAS", "tunnel": "x", "pool_id": "x", "worker_id": "x", "vm_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "snapshot": "nobodys",
}  # fmt: skip
LAST = {
    "removeFile": 1,
    "setSecret": 10,  # of their own, with the name that another's has
    "deleteVm": 9, "readContent": 1,  # it is logged, and the log tells whoever asked what he asked for
    "akStop": 1, "akDelete": 9, "arlRestore": 1, "arlReplay": 2, "arlSuspend": 3, "arlResume": 4,
    "arlDelete": 5, "arlEndExperiment": 6, "arlDrainPool": 7, "arlDestroyPool": 8,
}  # fmt: skip
SAID_ANEW = re.compile(r'"(timestamp|request_id)":"[^"]*"')


@dataclass
class Estate:
    """What the victim has. `names[dialect][parameter]`: what stands in a path for it."""

    names: dict[str, dict[str, str]]
    vm: str
    kube: Kube

    @property
    def marks(self) -> set[str]:
        """What must not be told to others: all ids that nobody could guess."""
        known = {value for names in self.names.values() for value in names.values()}
        return {value for value in known if len(value) >= 20}


@pytest.fixture
async def estate(api, ak, arl) -> Estate:
    vm = await api.fork(name="theirs")
    await api.ok("POST", f"/vms/{vm}/runs", {"command": "put /secret of-the-victim"})
    filesystem = (await api.ok("POST", "/filesystems", {"name": "theirs"}))["filesystem_id"]
    mount = (await api.ok("POST", f"/vms/{vm}/mounts", {"filesystem_id": filesystem, "path": "/data"}))["mount_id"]
    other = (await api.ok("POST", "/filesystems", {"name": "theirs-too"}))["filesystem_id"]
    sync = (await api.ok("POST", f"/vms/{vm}/syncs", {"filesystem_id": other}))["sync_id"]
    await api.ok("POST", f"/vms/{vm}/runs", {"command": "put /data/secret of-the-victim"})
    run = (await api.ok("POST", f"/vms/{vm}/runs", {"command": "hang", "background": True}))["run_id"]
    session = (await api.ok("POST", f"/vms/{vm}/sessions", {}))["session_id"]
    upload = {"path": "/big", "size": 4, "presigned": True}
    staged = (await api.ok("POST", f"/vms/{vm}/sync", {"op": "write", "writes": [upload]}))["results"][0]["upload_id"]
    await api.ok("POST", "/warm-pools", {"name": "theirs", "source_vm_name": "ubuntu", "replicas": 1})
    snapshot = (await api.ok("POST", f"/vms/{vm}/snapshots", {"name": "theirs"}))["snapshot_id"]
    key = (await api.ok("POST", "/api-keys", {"name": "theirs"}))["api_key_id"]
    await api.ok("PUT", "/secrets/theirs", {"value": "of-the-victim"})
    await ak.create("theirs-too")
    await ak.ok("PUT", "/sandboxes/theirs-too/files/secret", {"content": "of-the-victim"})
    detached = (await ak.ok("POST", "/sandboxes/theirs-too/exec/detach", {"command": ["echo", "hi"]}))["id"]
    uuid = (await ak.ok("GET", "/sandboxes/theirs-too"))["uuid"]
    arl_session = await arl.session()
    await arl.ok("POST", f"{arl_session}/execute", {"steps": [{"name": "s", "command": ["put", "/workspace/secret", "x"]}], "operationID": "theirs"})  # fmt: skip
    await arl.ok("POST", "/v1/managed/sessions", {"image": "ubuntu", "experimentId": "theirs"}, 201)
    kube = Kube(api, namespace="theirs")
    await kube.pool("theirs", 1)
    await kube.sandbox("theirs", "theirs")
    await kube.task("theirs", ["echo", "1"], sandbox="theirs")
    await kube.until("sandboxes", "theirs", lambda one: "AllTasksComplete" in str(one["status"]["conditions"]))
    contract = {
        "id": vm, "run_id": run, "sid": session, "upload_id": staged, "name": "theirs", "api_key_id": key, "vm_id": vm,
        "filesystem_id": filesystem, "mount_id": mount, "sync_id": sync,
        "snapshot": snapshot,
    }  # fmt: skip
    return Estate(
        {
            "": contract,
            "by name": contract | {"id": "theirs", "snapshot": "theirs"},
            "agentkernel": {"name": "theirs-too", "id": detached, "uuid": uuid},
            "agentkernel, as the contract names it": {"name": "theirs", "id": run, "uuid": uuid_of(vm)},
            "arl-gateway": {
                "id": arl_session.rpartition("/")[2], "operation": "theirs", "name": "theirs", "experiment": "theirs",
            },
            "arl-kubernetes": {"name": "theirs", "namespace": "theirs"},
        },
        vm,
        kube,
    )  # fmt: skip


def operations() -> list[tuple[str, Operation]]:
    """Each that wants a key, with the name of its dialect (none: the contract and our own)."""
    every = [("", one) for one in OPERATIONS] + [
        (dialect.name, one) for dialect in DIALECTS for one in dialect.operations
    ]
    return [(dialect, one) for dialect, one in every if one.access in ("key", "ticket")]


def in_order(dialect: str) -> list[Operation]:
    """First what only looks, last what takes away from others what they want to look at."""
    order = {"GET": 0, "PATCH": 1, "PUT": 2, "POST": 3, "DELETE": 4}
    asked = [one for of, one in operations() if of == dialect]
    return sorted(asked, key=lambda one: (LAST.get(one.name, 0), order[one.method], -one.path.count("/")))


def filled(operation: Operation, names: dict[str, str], prefix: str) -> str:
    """Its path. KeyError: a parameter that this test does not know."""
    path = prefix + re.sub(r"\{(\w+)\}", lambda found: (ABSENT | names)[found[1]], operation.path)
    return path + ("?path=/secret" if operation.name in NAMING_A_FILE else "")


def body_of(dialect: str, operation: Operation, vm: str) -> Any:
    if dialect == "arl-kubernetes":
        plural = next((one for one in KUBERNETES if f"/{one}" in operation.path), "")
        if operation.method not in ("POST", "PUT", "PATCH") or not plural:
            return None
        own = {"metadata": {"name": "mine"}} if operation.method == "POST" else {}
        return KUBERNETES[plural] | own
    body = BODIES.get(operation.name)
    meant = {"VM": vm, "NAME": ABSENT["name"] if vm == ABSENT["id"] else "theirs"}
    return body and {name: meant.get(str(value), value) for name, value in body.items()}


async def ask(api: Any, key: str, operation: Operation, path: str, body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}", "user-agent": "boxwood/0", "x-arl-path": "stolen"}
    headers["content-type"] = "application/merge-patch+json" if operation.method == "PATCH" else "application/json"
    made = api.http.build_request(operation.method, path, headers=headers, json=body)
    return await asyncio.wait_for(api.http.send(made), 30)


def variants(estate: Estate, dialect: str) -> list[dict[str, str]]:
    """What stands for the victim's things in this dialect's paths: by id, by name, by a name of another dialect's."""
    wanted = {"": ("", "by name")}.get(dialect, (dialect, f"{dialect}, as the contract names it"))
    return [estate.names[one] for one in wanted if one in estate.names]


async def rows(api: Any) -> dict[str, set[tuple[Any, ...]]]:
    """The database, whole."""

    def dump(connection: Any) -> dict[str, set[tuple[Any, ...]]]:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: set(map(tuple, connection.execute(f"SELECT * FROM {name}"))) for name in tables}

    database = api.app.core._database
    await database.flush()
    return dict(await database.read(dump))


async def settled(api: Any) -> dict[str, set[tuple[Any, ...]]]:
    """… once nothing of the victim's is under way any more: the pool is full, the step has its snapshot."""
    caller = await api.app.core.keys.authenticate(api.key)
    seen = await rows(api)
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.05)
            before, seen = seen, await rows(api)
            whole = api.app.core.pools.get(caller, "theirs").ready == 1
            if before == seen and whole and "arl.snapshot" in {value for row in seen["records"] for value in row}:
                return seen


async def state(api: Any, estate: Estate) -> tuple[Any, ...]:
    """What runs and lies in the victim's VM."""
    living = api.machine.boxes[estate.vm]
    return living.tree(), {run: process.end for run, process in living.runs.items()}, sorted(living.shells)


def test_every_body_is_some_operations() -> None:
    names = {operation.name for _, operation in operations()} | {"importImage", "down"}
    assert (set(BODIES) | OWN_WORLD | NAMED_BY_BODY) - names == set()


@pytest.mark.parametrize("dialect", ["", *(one.name for one in DIALECTS)])
async def test_nothing_of_anothers_can_be_reached(api, stranger, estate, dialect):
    before, lying = await settled(api), await state(api, estate)
    wrong = []
    for operation in in_order(dialect):
        body = body_of(dialect, operation, estate.vm)
        nobodys = body_of(dialect, operation, ABSENT["id"])
        for names in variants(estate, dialect):
            for prefix in operation.prefixes:
                path = filled(operation, names, prefix)
                response = await ask(api, stranger.key, operation, path, body)
                absent = await ask(api, stranger.key, operation, filled(operation, {}, prefix), nobodys)
                if said := judge(estate, operation, names, response, absent):
                    wrong.append(f"{operation.method} {path}: {said}: {response.text[:200]}")
    assert not wrong, "\n".join(wrong)
    after = await rows(api)
    changed = {
        name: (before[name] - after[name], after[name] - before[name]) for name in before if before[name] - after[name]
    }
    assert not changed, changed
    assert await state(api, estate) == lying


def judge(
    estate: Estate, operation: Operation, names: dict[str, str], response: httpx2.Response, absent: httpx2.Response
) -> str | None:
    """What is wrong with what a stranger is told."""
    asked = {value for value in names.values() if f"/{value}" in response.request.url.path}
    if operation.name in NAMED_BY_BODY:
        asked.add(estate.vm)
    if told := [mark for mark in estate.marks - asked if mark in response.text]:
        return f"tells of {told}"
    if "of-the-victim" in response.text:
        return "tells what is in a file"
    if operation.refused:
        return None if response.status_code in (404, 405, 422, 501) else "is not refused"
    if not re.search(r"\{(?!namespace\})", operation.path) and operation.name not in NAMED_BY_BODY:
        return None if response.status_code < 300 or operation.name in OWN_WORLD else "is refused"
    if operation.name in OWN_WORLD or operation.path in EVERYBODYS:
        return None if response.status_code == absent.status_code else "says another thing of what nobody has"
    if response.status_code != 404:
        return f"{response.status_code}"
    same = plain(response.text, {**ABSENT, **names}) == plain(absent.text, ABSENT)
    return None if same else f"says of what nobody has: {absent.text[:200]}"


def plain(text: str, names: dict[str, str]) -> str:
    """Without what was asked for, and what is said anew each time."""
    for value in sorted({*names.values(), *ABSENT.values()}, key=len, reverse=True):
        text = text.replace(value, "IT") if len(value) > 4 else text
    return SAID_ANEW.sub("", text)


@pytest.mark.parametrize("dialect", ["", *(one.name for one in DIALECTS)])
async def test_the_victim_reaches_all_of_it(api, estate, dialect):
    """What proves the test above: the same requests, with the key of whose things they are."""
    release(api.machine, estate.vm)
    wrong = []
    for operation in in_order(dialect):
        if operation.refused or operation.path in EVERYBODYS:
            continue
        names = variants(estate, dialect)[0]
        path = filled(operation, names, operation.prefixes[0])
        body = body_of(dialect, operation, estate.names["arl-gateway"]["id"] if "arl" in dialect else estate.vm)
        response = await ask(api, api.key, operation, path, body)
        if response.status_code in (401, 403, 404, 410) or (response.status_code >= 500 and "exec" not in path):
            wrong.append(f"{operation.method} {path}: {response.status_code}: {response.text[:200]}")
    assert not wrong, "\n".join(wrong)


async def test_a_signed_url_is_good_for_what_it_was_made_for(api, stranger, estate):
    """Whoever has a URL may use it; one that is changed to name another organisation's thing is nobody's."""
    own = {"headers": {"authorization": f"Bearer {stranger.key}"}}
    vm = (await api.ok("POST", "/fork", {"source_vm_name": "ubuntu", "name": "mine"}, **own))["vm_id"]
    wish = {"op": "write", "writes": [{"path": "/big", "size": 4, "presigned": True}]}
    given = (await api.ok("POST", f"/vms/{vm}/sync", wish, **own))["results"][0]
    query = dict(parse_qsl(urlsplit(given["presigned_url"]).query))
    staged = estate.names[""]["upload_id"]
    before = await settled(api)
    response = await api.http.put(f"/boxwood/uploads/{staged}", params=query, content=b"evil")
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden"), response.text
    signed = api.app.core.files.sign("download", "OTHER", vm, "/big", seconds=900)
    mine = {"path": "/big", "org": "OTHER", "expires": signed.expires, "signature": signed.signature}
    victim = (await api.app.core.keys.authenticate(api.key)).org_id
    for target, changed in (
        (estate.vm, {}), (vm, {"path": "/secret"}), (estate.vm, {"org": victim, "path": "/secret"}),
        (vm, {"org": victim}), (vm, {"expires": signed.expires + 1}),
        (vm, {"signature": signed.signature[:-1]}), (vm, {"signature": query["signature"]}),
    ):  # fmt: skip
        response = await api.http.get(f"/boxwood/files/{target}", params=mine | changed)
        assert response.status_code == 403, (changed, response.text)
    assert await rows(api) == before
    assert (await api.http.get(f"/boxwood/files/{vm}", params=mine)).status_code == 404, "good, but there is no file"
    upload = await api.http.put(urlsplit(given["presigned_url"]).path, params=query, content=b"mine")
    assert upload.json() == {"size": 4}, "the URL as it was given is good"


async def test_cursors_cannot_be_carried_over_or_changed(api, stranger, estate):
    for _ in range(2):
        await api.fork()
        await api.ok("POST", f"/vms/{estate.vm}/runs", {"command": "echo", "session_idx": 1})
    own = {"headers": {"authorization": f"Bearer {stranger.key}"}}
    mine = (await api.ok("POST", "/fork", {"source_vm_name": "ubuntu", "name": "mine"}, **own))["vm_id"]
    lists = {
        "/vms": "/vms",
        f"/vms/{estate.vm}/runs": f"/vms/{mine}/runs",
        f"/vms/{estate.vm}/sessions": f"/vms/{mine}/sessions",
    }
    cursors = {path: (await api.ok("GET", f"{path}?limit=1"))["next_cursor"] for path in lists}
    for path, cursor in cursors.items():
        assert cursor and (await api.ok("GET", f"{path}?limit=1&cursor={cursor}")) is not None
        await api.refused(400, "bad_request", "GET", f"{lists[path]}?cursor={cursor}", **own)
        for other in cursors.keys() - {path}:
            await api.refused(400, "bad_request", "GET", f"{other}?cursor={cursor}")
        for wrong in (
            cursor[:-1],
            cursor[1:],
            cursor.swapcase(),
            cursor + "A",
            "A" * len(cursor),
            "-",
            "%00",
            "x" * 4096,
        ):
            await api.refused(400, "bad_request", "GET", f"{path}?limit=1&cursor={wrong}")


async def test_ids_cannot_be_guessed(api):
    """Between two made in the same millisecond lie more than anybody can try; and those of keys, uploads and runs are
    of the same mint."""
    from boxwood.core.ids import ALPHABET, new_id

    values = []
    for _ in range(2000):
        value = 0
        for character in new_id():
            value = value * 32 + ALPHABET.index(character)
        values.append(value)
    assert min(after - before for before, after in pairwise(values)) > 1 << 40
