"""Directories out of a VM as archives that a hostile one may have made: what is written here, and where."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from boxwood import ServerError
from boxwood.client.trees import unpack


def member(name: str, data: bytes = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info, data


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    """In pax format, sizes as they are told, whatever follows."""
    parts = [info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512) for info, data in members]
    return io.BytesIO(b"".join(parts) + bytes(1024))


def test_files_directories_and_links(tmp_path: Path) -> None:
    done = unpack(
        archive(member("d", type=tarfile.DIRTYPE), member("d/run", b"x", mode=0o6755), member("f", b"yy", mode=0o400),
                link("d/l", "../f"), link("top", "d/./run")),
        str(tmp_path),
    )  # fmt: skip
    assert (done.entries, done.bytes, done.skipped) == (5, 3, 0)
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "d/run").stat().st_mode & 0o7777 == 0o777 & ~umask
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o666 & ~umask
    assert (tmp_path / "d/l").read_text() == "yy" and (tmp_path / "top").read_text() == "x"


@pytest.mark.parametrize(
    "links",
    [
        [("out", "..")],
        [("out", "/etc")],
        [("out", "")],
        [("d/out", "../../x")],
        [("a/b", ".."), ("out", "a/b/../..")],  # each within by its text; together they lead above the directory
        [("a/b", "."), ("out", "a/b/../../../etc")],
    ],
)
def test_links_that_lead_out_are_left_out(tmp_path: Path, links: list[tuple[str, str]]) -> None:
    unpack(archive(*(link(name, target) for name, target in links)), str(tmp_path / "to"))
    top = (tmp_path / "to").resolve()
    for found in (tmp_path / "to").rglob("*"):
        assert found.resolve() == top or top in found.resolve().parents, found
    assert not os.path.lexists(tmp_path / "to" / links[-1][0])


@pytest.mark.parametrize(
    "hostile",
    [
        member("../x", b"x"),
        member("/x", b"x"),
        member("sparse", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 60)}),
        member("back", pax_headers={"size": "-2048"}),
        member("late", pax_headers={"mtime": "inf"}),
        member("never", pax_headers={"mtime": "nan"}),
        member("short", b"", size=4096),
        member("number", pax_headers={"comment": "1" * 300}),
        member("header", b"x" * (2 << 20), type=tarfile.GNUTYPE_LONGNAME),
        link("l", "ä\0b"),
    ],
    ids=lambda one: one[0].name,
)
def test_what_is_no_such_archive_is_told(tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(ServerError):
        unpack(archive(hostile), str(tmp_path / "to"))
    assert [found.name for found in tmp_path.rglob("*") if not found.is_dir()] == []
