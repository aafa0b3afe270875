"""The image directory: ids, locks, parts that were left behind, the index."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from boxwood.images import host, rootfs
from boxwood.images.shelf import ImageError, Shelf, new_id


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "images")


def test_ids_are_ulids_of_their_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(len(i) == 26 and set(i) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ") and i[0] <= "7" for i in ids)
    assert [i[:10] for i in ids] == sorted(i[:10] for i in ids)


def test_only_root_reaches_the_directory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir(mode=0o755)
    Shelf(tmp_path / "images")
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700


def test_a_layer_has_its_name_only_when_it_is_whole(shelf: Shelf) -> None:
    part = shelf.begin()
    (part.upper / "file").write_text("x")
    assert not (shelf.directory / part.layer_id).exists()
    part.finish()
    assert (shelf.directory / part.layer_id / "upper/file").read_text() == "x"
    assert not list(shelf.directory.glob("*.part"))


def test_what_was_interrupted_is_removed_and_what_is_being_made_is_not(shelf: Shelf) -> None:
    left = shelf.directory / f"{new_id()}.part"
    (left / "upper/a/b").mkdir(parents=True)
    (left / "moved.3").mkdir()
    (left / "moved.3/upper").write_text("of a removal that was interrupted")
    alive = shelf.begin()
    assert not left.exists()
    another = shelf.begin()
    assert alive.path.exists()
    alive.discard()
    another.discard()
    assert not list(shelf.directory.glob("*.part"))


def test_removal_follows_no_link_and_knows_no_depth(shelf: Shelf, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("x")
    part = shelf.begin()
    (part.upper / "link").symlink_to(treasure)
    (part.upper / "moved.1").mkdir()
    fd = os.open(part.upper, os.O_RDONLY)
    for _ in range(3000):  # deeper than any path, and than the interpreter's stack
        os.mkdir("d", dir_fd=fd)
        os.symlink(treasure, "l", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    part.discard()
    assert not part.path.exists()
    assert (treasure / "gold").read_text() == "x"


def test_the_index_forgets_layers_that_are_gone(shelf: Shelf) -> None:
    part = shelf.begin()
    part.finish()
    shelf.record("host", "key", {"layer_id": part.layer_id, "more": 1})
    assert shelf.find("host", "key") == {"layer_id": part.layer_id, "more": 1}
    assert shelf.find("host", "other") is None
    assert shelf.find("rootfs", "key") is None
    (shelf.directory / part.layer_id / "upper").rmdir()
    assert shelf.find("host", "key") is None


@pytest.mark.parametrize("layer", ["../../etc", "", "x" * 26, None, 7, ["a"]])
def test_an_index_that_names_no_layer_names_none(shelf: Shelf, layer: object) -> None:
    (shelf.directory / "index.json").write_text(json.dumps({"format": 1, "host": {"key": {"layer_id": layer}}}))
    assert shelf.find("host", "key") is None


def test_a_damaged_index_is_said(shelf: Shelf) -> None:
    (shelf.directory / "index.json").write_text("{")
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        shelf.find("host", "key")


def test_locks(shelf: Shelf) -> None:
    with shelf.locked("a") as ours, shelf.locked("b", wait=False) as other, shelf.locked("a", wait=False) as taken:
        assert (ours, other, taken) == (True, True, False)
    with shelf.locked("a", wait=False) as again:
        assert again


def test_a_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (host.ensure, lambda images: rootfs.import_rootfs(images, tmp_path)):
        with pytest.raises(ImageError, match="cannot be used"):
            call(tmp_path / "file/images")
