"""Files: read, written at once or in chunks of any order, by URL, listed."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwood.core import boxes, errors
from boxwood.core.ids import new_id
from boxwood.core.model import Chunk
from boxwood.core.uploads import merged
from boxwood.engine.api import BoxGone


def chunk(
    path: str, data: bytes, start: int = 0, size: int | None = None, upload_id: str | None = None, **more
) -> Chunk:
    return Chunk(path, len(data) if size is None else size, upload_id or new_id(), start, data, **more)


async def read(world, vm, path: str) -> bytes:
    content = await world.core.files.read(world.caller, vm.vm_id, path)
    if content.data is not None:
        return content.data
    with open(content.fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
async def test_whole_files_on_a_vm_that_never_ran(world, size):
    vm, data = await world.fork(), os.urandom(size)
    written = await world.core.files.write(world.caller, vm.vm_id, chunk("/d/file", data))
    assert (written.complete, written.written, written.received, written.ranges) == (True, True, size, ((0, size),))
    assert await read(world, vm, "/d/file") == data
    assert await read(world, await world.fork(vm.vm_id), "/d//./file") == data


async def test_chunks_in_any_order_twice_and_over_a_restart(world):
    vm, data, upload = await world.fork(), os.urandom(100_000), new_id()
    digest = hashlib.sha256(data).hexdigest()

    async def send(start: int, end: int):
        piece = chunk("/f", data[start:end], start, len(data), upload, sha256=digest)
        return await world.core.files.write(world.caller, vm.vm_id, piece)

    assert (await send(50_000, 70_000)).ranges == ((50_000, 70_000),)
    assert (await send(0, 10_000)).ranges == ((0, 10_000), (50_000, 70_000))
    assert (await send(0, 10_000)).received == 30_000
    await world.restart()
    assert (await send(5_000, 60_000)).ranges == ((0, 70_000),)
    with pytest.raises(errors.NotFound) as refusal:
        await read(world, vm, "/f")
    assert refusal.value.resource == "file"
    assert (await send(60_000, 100_000)).written
    assert await read(world, vm, "/f") == data
    assert (await send(0, 10_000)).complete  # a retry that comes late
    assert not os.listdir(world.config.data / "uploads")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), extra=st.lists(st.tuples(st.integers(0, 79), st.integers(1, 40)), max_size=6))
async def test_any_order_and_any_overlap_makes_the_same_file(world, order, extra):
    data, upload = bytes(range(80)), new_id()
    vm = await world.fork()
    pieces = [(start, min(80, start + length)) for start, length in extra] + [(i * 10, i * 10 + 10) for i in order]
    answers = [
        await world.core.files.write(world.caller, vm.vm_id, chunk("/f", data[a:b], a, 80, upload)) for a, b in pieces
    ]
    assert answers[-1].complete
    assert await read(world, vm, "/f") == data


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20))))
def test_merged_ranges_cover_what_came(pieces):
    ranges, seen = (), set()
    for start, length in pieces:
        ranges = merged(ranges, start, start + length)
        seen |= set(range(start, start + length))
    assert {i for a, b in ranges for i in range(a, b)} == seen
    assert all(a < b for a, b in ranges) and all(ranges[i][1] < ranges[i + 1][0] for i in range(len(ranges) - 1))


async def test_a_wrong_checksum_writes_nothing(world):
    vm = await world.fork()
    wrong = hashlib.sha256(b"other").hexdigest()
    upload = new_id()
    for piece in (chunk("/f", b"data", sha256=wrong), chunk("/f", b"ta", 2, 4, upload, sha256=wrong)):
        if piece.start:
            await world.core.files.write(world.caller, vm.vm_id, piece)
            piece = chunk("/f", b"da", 0, 4, upload)
        with pytest.raises(errors.BadRequest):
            await world.core.files.write(world.caller, vm.vm_id, piece)
    with pytest.raises(errors.NotFound):
        await read(world, vm, "/f")
    assert not os.listdir(world.config.data / "uploads")
    right = hashlib.sha256(b"data").hexdigest().upper()
    assert (await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"data", sha256=right))).complete


async def test_an_upload_id_stands_for_one_file_of_one_vm(world):
    vm, other, upload = await world.fork(), await world.fork(), new_id()
    write = world.core.files.write
    await write(world.caller, vm.vm_id, chunk("/f", b"ab", 0, 4, upload))
    for piece in (chunk("/g", b"cd", 2, 4, upload), chunk("/f", b"cd", 2, 5, upload)):
        with pytest.raises(errors.Conflict) as refusal:
            await write(world.caller, vm.vm_id, piece)
        assert refusal.value.resource == "upload"
    await write(world.caller, other.vm_id, chunk("/g", b"whole", upload_id=upload))
    for again in (chunk("/h", b"whole", upload_id=upload), chunk("/g", b"larger", upload_id=upload)):
        with pytest.raises(errors.Conflict):
            await write(world.caller, other.vm_id, again)
    assert (await write(world.caller, other.vm_id, chunk("/g", b"whole", upload_id=upload))).complete
    assert await read(world, other, "/g") == b"whole"
    assert (await write(world.caller, vm.vm_id, chunk("/f", b"cd", 2, 4, upload))).complete


@pytest.mark.parametrize("path", ["relative", "", "/", "/a/", "/a/.", "/a/..", "/a\0b", "/" + "x" * 4096, "/\ud800"])
async def test_bad_paths(world, path):
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.core.files.write(world.caller, vm.vm_id, chunk(path, b"x"))
    with pytest.raises(errors.BadRequest):
        await world.core.files.read(world.caller, vm.vm_id, path)
    with pytest.raises(errors.BadRequest):
        await world.core.files.stage(world.caller, vm.vm_id, path, 1)
    assert not world.machine.called("boot")


async def test_dots_are_left_to_the_box(world):
    vm = await world.fork()
    await world.core.files.write(world.caller, vm.vm_id, chunk("/a/../b", b"x"))
    assert world.machine.called("write_file") == ["/a/../b"]


@pytest.mark.parametrize(
    "piece",
    [
        Chunk("/f", 4, "u", -1, b"x"),
        Chunk("/f", 4, "u", 3, b"xy"),
        Chunk("/f", 4, "u", 0, b""),
        Chunk("/f", -1, "u", 0, b""),
        Chunk("/f", 1, "", 0, b"x"),
        Chunk("/f", 1, "u/../../x", 0, b"x"),
        Chunk("/f", 1, "u" * 65, 0, b"x"),
        Chunk("/f", 1, "u", 0, b"x", sha256="12"),
    ],
)
async def test_bad_chunks(world, piece):
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.core.files.write(world.caller, vm.vm_id, piece)


async def test_too_large(make_world):
    world = await make_world(file_bytes=10)
    vm = await world.fork()
    with pytest.raises(errors.PayloadTooLarge) as refusal:
        await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"x", 0, 11))
    assert refusal.value.details == {"maximum_bytes": 10, "request_bytes": 11}


async def test_too_many_unfinished_uploads(world, monkeypatch):
    from boxwood.core import uploads

    monkeypatch.setattr(uploads, "UNFINISHED", 3)
    vm = await world.fork()
    for _ in range(3):
        await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"x", 0, 2))
    with pytest.raises(errors.ResourceBusy):
        await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"x", 0, 2))


async def pieces(*parts: bytes):
    for part in parts:
        yield part


async def test_uploads_by_url(world):
    vm, files = await world.fork(), world.core.files
    upload = await files.stage(world.caller, vm.vm_id, "/big", 6)
    with pytest.raises(errors.Conflict):
        await files.commit(world.caller, vm.vm_id, "/big", 6, upload)
    with pytest.raises(errors.BadRequest):
        await files.put_staged(upload, pieces(b"abc"))
    with pytest.raises(errors.PayloadTooLarge):
        await files.put_staged(upload, pieces(b"abc", b"defg"))
    assert await files.put_staged(upload, pieces(b"XXX", b"XXX")) == 6
    assert await files.put_staged(upload, pieces(b"abc", b"def")) == 6
    with pytest.raises(errors.Conflict):
        await files.commit(world.caller, vm.vm_id, "/other", 6, upload)
    await world.restart()
    files = world.core.files
    assert (await files.commit(world.caller, vm.vm_id, "/big", 6, upload)).written
    assert (await files.commit(world.caller, vm.vm_id, "/big", 6, upload)).complete
    assert await read(world, vm, "/big") == b"abcdef"
    with pytest.raises(errors.InvalidState):
        await files.put_staged(upload, pieces(b"abcdef"))
    for unknown in ("x", new_id()):
        with pytest.raises(errors.NotFound):
            await files.put_staged(unknown, pieces(b"abcdef"))
    other = await world.fork()
    with pytest.raises(errors.NotFound):
        await files.commit(world.caller, other.vm_id, "/big", 6, upload)


async def test_signed_words(world):
    sign, verify = world.core.files.sign, world.core.files.verify
    mark = sign("put", "ab", "c")
    verify("put", "ab", "c", expires=mark.expires, signature=mark.signature)
    for purpose, words, expires, signature in (
        ("get", ("ab", "c"), mark.expires, mark.signature),
        ("put", ("a", "bc"), mark.expires, mark.signature),
        ("put", ("ab", "c"), mark.expires + 1, mark.signature),
        ("put", ("ab", "c"), mark.expires, mark.signature[:-1]),
        ("put", ("ab", "c"), mark.expires, "ü\ud800"),
    ):
        with pytest.raises(errors.Forbidden):
            verify(purpose, *words, expires=expires, signature=signature)
    late = sign("put", "ab", seconds=-1)
    with pytest.raises(errors.Expired):
        verify("put", "ab", expires=late.expires, signature=late.signature)


async def test_manifest(world):
    vm = await world.fork()
    await world.out(vm, "put /w/a 1; put /w/sub/b 22")
    manifest = await world.core.files.manifest(world.caller, vm.vm_id, "/w/")
    assert [(e.path, e.size) for e in manifest.entries] == [("a", 1), ("sub/b", 2)]
    assert (await world.core.files.manifest(world.caller, vm.vm_id, "/none")).entries == ()
    with pytest.raises(errors.BadRequest):
        await world.core.files.manifest(world.caller, vm.vm_id, "//./")


async def test_directories_and_missing_files(world):
    vm = await world.fork()
    await world.out(vm, "put /w/a 1")
    with pytest.raises(errors.BadRequest):
        await world.core.files.read(world.caller, vm.vm_id, "/w")
    with pytest.raises(errors.NotFound):
        await world.core.files.read(world.caller, vm.vm_id, "/nothing")


async def test_staged_bytes_go_with_their_vm(world):
    vm = await world.fork()
    await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"x", 0, 2))
    assert os.listdir(world.config.data / "uploads")
    await world.core.vms.delete(world.caller, vm.vm_id)
    assert not os.listdir(world.config.data / "uploads")


async def test_files_while_the_source_is_forked(world):
    vm = await world.fork()
    upload = new_id()
    await world.core.files.write(world.caller, vm.vm_id, chunk("/big", b"x" * 50, 0, 100, upload))
    writes = [world.core.files.write(world.caller, vm.vm_id, chunk(f"/f{i}", b"x")) for i in range(20)]
    *written, child = await asyncio.gather(*writes, world.fork(vm.vm_id))
    assert all(w.written for w in written)
    await world.core.files.write(world.caller, vm.vm_id, chunk("/big", b"y" * 50, 50, 100, upload))
    for i in range(20):
        assert await read(world, vm, f"/f{i}") == b"x"
    assert len(await read(world, vm, "/big")) == 100
    with pytest.raises(errors.NotFound):
        await read(world, child, "/big")


async def test_a_box_that_dies_under_a_read_is_replaced(world, monkeypatch):
    monkeypatch.setattr(boxes, "GONE_SECONDS", 0.01)  # this box says so and lives on
    vm = await world.fork()
    await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"x"))
    world.machine.fail["read_file"] = [BoxGone("killed")]
    assert await read(world, vm, "/f") == b"x"
    world.machine.fail["read_file"] = [BoxGone("killed"), BoxGone("killed")]
    with pytest.raises(errors.Internal):
        await read(world, vm, "/f")


async def test_what_a_vm_is_told_counts_for_the_next_request(world):
    """Rows that were read are kept until something is written."""
    vm = await world.fork()
    write = world.core.files.write
    for turn in range(3):
        await write(world.caller, vm.vm_id, chunk("/f", b"%d" % turn))
        assert await read(world, vm, "/f") == b"%d" % turn
        await world.core.vms.stop(world.caller, vm.vm_id)
        with pytest.raises(errors.InvalidState, match="stopped"):
            await read(world, vm, "/f")
        await world.core.vms.start(world.caller, vm.vm_id)
    other = await world.fork(vm.vm_id)
    assert await read(world, other, "/f") == b"2"
    await world.core.vms.update(world.caller, other.vm_id, immutable=True)
    with pytest.raises(errors.InvalidState, match="immutable"):
        await write(world.caller, other.vm_id, chunk("/f", b"no"))
    await world.core.vms.delete(world.caller, vm.vm_id)
    with pytest.raises(errors.NotFound):
        await read(world, vm, "/f")


async def test_a_box_that_was_lost_is_asked_nothing_more(world):
    """It may not be gone yet when its agent says no more: whoever asks again gets the next one."""
    vm = await world.fork()
    await world.core.files.write(world.caller, vm.vm_id, chunk("/f", b"here"))
    first = world.machine.boxes[vm.vm_id]
    asyncio.get_running_loop().call_soon(first.die, "gone")
    await asyncio.sleep(0)
    assert await read(world, vm, "/f") == b"here"
    assert world.machine.boxes[vm.vm_id] is not first
