"""Export and import: a VM as one file, and all that may be wrong with such a file."""

from __future__ import annotations

import asyncio
import io
import json
import random
import tarfile
from types import SimpleNamespace

import pytest

from amounts import amount
from boxwood.core import archives
from boxwood.core.archives import Writer, zstd
from together import together


async def export(api, vm, **query):
    response = await api("GET", f"/vms/{vm}/export", params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zstd"
    return response.content


async def import_(api, data, **query):
    return await api("POST", "/vms/import", content=data, params=query)


async def there(api) -> set[str]:
    """The VMs that there are: what else is told of them may be written a moment later."""
    return {vm["vm_id"] for vm in (await api.ok("GET", "/vms"))["vms"]}


async def refused(api, data, status=400, code="bad_request", **query):
    before = await there(api)
    response = await import_(api, data, **query)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert await there(api) == before
    await api.app.core.layers.settled()
    assert not api.machine.layers
    return error["message"]


def made(about, body=b"{}\n"):
    writer = Writer(about)
    return writer.begin() + writer.more(body) + writer.end()


def good(**members):
    from fakes import fake_engine

    return {"format": 1, "full": False, "image": {"layer": fake_engine.IMAGE, "name": "ubuntu"}, "vm": {}} | members


async def test_there_and_back(api):
    vm = await api.fork(name="n", description="what it is for", resources={"vcpu": 2, "memory_mib": 512})
    await api.run(vm, "put /a one; put /secret/x y; rm /etc/os-release")
    data = await export(api, vm)
    await api.ok("DELETE", f"/vms/{vm}")
    await api.app.core.layers.settled()
    response = await import_(api, data, name="again", ttl=3600)
    assert response.status_code == 201
    back = response.json()
    assert (back["name"], back["description"], back["resources"]["memory_mib"]) == ("again", "what it is for", 512)
    assert (await api.run("again", "cat /a; cat /secret/x"))["stdout"] == "oney"
    assert (await api.run("again", "cat /etc/os-release"))["exit_code"] == 1
    changes = (await api.ok("GET", "/vms/again/diff"))["changes"]
    assert {one["path"] for one in changes} == {"/a", "/secret/x", "/etc/os-release"}
    await api.ok("DELETE", "/vms/again")
    await api.app.core.layers.settled()
    assert api.machine.layers == {}


def about(data):
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(data)), mode="r|") as archive:
        first = archive.next()
        assert first is not None and first.name == "boxwood.json"
        file = archive.extractfile(first)
        assert file is not None
        return json.load(file)


async def test_a_vm_that_has_written_nothing(api):
    data = await export(api, await api.fork())
    assert (await import_(api, data)).status_code == 201
    assert api.machine.called("unpack") == []


async def test_all_of_a_vm_goes_where_its_image_is_not(api):
    from fakes import fake_engine

    vm = await api.fork()
    await api.run(vm, "put /a one; rm /etc/os-release")
    whole, part = await export(api, vm, full="true"), await export(api, vm)
    await api.ok("DELETE", f"/vms/{vm}")
    await api.app.core.layers.settled()
    other = "0" * 25 + "1"
    lost = made(good(image={"layer": other, "name": "ubuntu\x1b"}))
    assert "full" in await refused(api, lost, 409, "conflict")
    api.machine.images[fake_engine.IMAGE]["/below"] = b"hidden"
    assert (await import_(api, whole, name="whole")).status_code == 201
    assert (await api.run("whole", "cat /a"))["stdout"] == "one"
    assert (await api.run("whole", "cat /below"))["exit_code"] == 1
    assert (about(whole)["full"], about(part)["full"]) == (True, False)


async def test_what_is_in_the_file(api):
    vm = await api.fork(name="n")
    await api.run(vm, "put /a one; export SECRET=hunter2")
    data = await export(api, vm)
    assert b"hunter2" not in zstd.decompress(data)
    found = about(data)
    assert (found["format"], found["full"], found["vm"]["name"]) == (1, False, "n")


async def test_damaged_files(api):
    vm = await api.fork()
    await api.run(vm, "put /a " + "x" * 500)
    data = await export(api, vm)
    plain = zstd.decompress(data)
    await api.ok("DELETE", f"/vms/{vm}")
    await api.app.core.layers.settled()
    for cut in (0, 1, 10, len(data) // 2, len(data) - 1):
        await refused(api, data[:cut])
    await refused(api, data + b"x")
    await refused(api, data + data)
    await refused(api, plain)
    await refused(api, zstd.compress(b""))
    await refused(api, zstd.compress(b"x" * 100_000))
    for at in range(0, len(plain) - 1, amount(807, 211)):
        broken = bytearray(plain)
        broken[at] ^= 1
        response = await import_(api, zstd.compress(bytes(broken)))
        assert response.status_code in (400, 409), at  # 409: of another image, as far as its head says
    await api.app.core.layers.settled()
    assert not api.machine.layers
    for cut in range(1, len(plain), amount(2003, 509)):
        await refused(api, zstd.compress(plain[:cut]))
    shuffled = random.Random(1).randbytes(5000)
    await refused(api, shuffled)
    assert (await import_(api, data)).status_code == 201


@together(
    "about",
    [
        {}, [], {"format": 2}, {"format": 1}, good(full="yes"), good(image=None), good(vm=[]),
        good(vm={"vcpu": "2"}), good(vm={"memory_mib": -1}), good(vm={"memory_mib": True}),
        good(vm={"network": "all"}), good(vm={"description": "x" * 100_000}), good(vm={"disk_mib": 10**30}),
        good(vm={"description": "\ud800"}), good(vm={"pids": 1.5}),
    ],
)  # fmt: skip
async def test_heads_that_make_no_sense(api, about):
    response = await import_(api, made(about))
    assert 400 <= response.status_code < 500, response.text
    await api.app.core.layers.settled()
    assert not api.machine.layers


@pytest.mark.parametrize("layer", ["", "../../etc", 7, None, "x" * 26, "0" * 26])
async def test_images_that_are_none(api, layer):
    await refused(api, made(good(image={"layer": layer})), 409, "conflict")


async def test_a_head_without_end(api):
    await refused(api, made({"x": "y" * archives.MOST_HEAD}))


async def test_trees_that_are_refused_and_names_that_are_taken(api):
    assert "no tree" in await refused(api, made(good(), b"rubbish"))
    api.machine.free_disk = 1
    await refused(api, made(good()), 503, "capacity_unavailable")
    api.machine.free_disk = 1 << 40
    await api.fork(name="taken")
    await refused(api, made(good()), 409, "already_exists", name="taken")
    await refused(api, made(good()), name="no name")


async def test_bombs_take_no_memory(api):
    """64 MiB of nothing in some KiB: given on in small pieces, and refused."""
    writer = Writer(good())
    bomb = writer.begin() + b"".join(writer.more(bytes(1 << 20)) for _ in range(64)) + writer.end()
    assert len(bomb) < 1 << 16
    reader, sizes = archives.Reader(), []
    sizes.append(len(reader.take(bomb)))
    while reader.more:
        sizes.append(len(reader.take(b"")))
    reader.end()
    assert max(sizes) <= archives.PIECE and sum(sizes) > 60 << 20
    await refused(api, bomb)


async def test_who_may(api):
    await api.refused(403, "forbidden", "GET", "/vms/ubuntu/export")
    await api.refused(404, "not_found", "GET", "/vms/nobody/export")
    await api.refused(400, "bad_request", "GET", f"/vms/{await api.fork()}/export", params={"full": "x"})


async def test_an_export_that_nobody_takes_holds_nothing(api):
    vm = await api.fork()
    await api.run(vm, "put /a one")
    for _ in range(5):  # more than may go on at once
        assert (await asyncio.wait_for(api("HEAD", f"/vms/{vm}/export"), 10)).status_code == 200
    await api.app.core._database.flush()
    held = await api.app.core._database.read(lambda connection: connection.execute("SELECT * FROM pins").fetchall())
    assert held == []


async def test_what_is_exported_stays_until_it_has_been(api):
    vm = await api.fork()
    await api.run(vm, "put /a " + "x" * 3000)
    api.machine.merge_gate = asyncio.Event()
    asked = asyncio.create_task(export(api, vm))
    while not api.machine.called("pack"):
        await asyncio.sleep(0)
    await api.ok("DELETE", f"/vms/{vm}")
    await api.app.core.layers.settled()
    assert any(api.machine.layers.values())
    api.machine.merge_gate.set()
    data = await asked
    await api.app.core.layers.settled()
    assert api.machine.layers == {}
    assert (await import_(api, data)).status_code == 201


async def test_no_vm_holds_more_than_this_server_lets_it(api, monkeypatch):
    vm = await api.fork()
    await api.ok("PUT", f"/vms/{vm}/files/content?path=/large", content=bytes(5 << 18))
    data = await export(api, vm)
    await api.ok("DELETE", f"/vms/{vm}")
    exports = api.app.core.exports
    monkeypatch.setattr(exports._disks, "_config", SimpleNamespace(disk_mib=2, disk_mib_most=2))
    await refused(api, data)  # the fake's archive is twice as long as what is in it
    assert api.machine.called("unpack")[-1][2] == 2 << 20
