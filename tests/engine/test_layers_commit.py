"""Changes that are folded back: what comes out is what a plain model of three trees says."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amounts import amount
from engine.overlays import Layers, new_id
from engine.test_layers_diff import expected, plain
from engine.test_layers_merge import attributes, base, make_raw, raw_layer, written

pytestmark = pytest.mark.root


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def committed(layers: Layers, fork: list[str], theirs: list[str], ours: list[str]) -> tuple[str | None, list[str]]:
    """The new layer, or what collides."""
    ids = list(dict.fromkeys([*fork, *theirs, *ours]))
    stream, target = os.memfd_create("collisions"), new_id()
    try:
        sides = {"base": fork, "theirs": theirs, "ours": ours}
        answer = layers.job(
            stream, kind="commit", layers=[["data", one] for one in ids], target=target,
            **{side: [ids.index(one) for one in stack] for side, stack in sides.items()},
        )  # fmt: skip
        assert answer.get("ok"), answer
        collisions = [json.loads(line) for line in os.pread(stream, 1 << 20, 0).splitlines()]
    finally:
        os.close(stream)
    assert answer["collisions"] == len(collisions)
    assert (target in layers.names()) != bool(collisions)
    assert not any(name.startswith((".dead", f"{target}.part")) for name in layers.names())
    return (None if collisions else target), collisions


def forked(layers: Layers, fork: list[str], step: Any) -> list[str]:
    top = layers.new()
    layers.shown(fork, top, lambda at: (step(at), None)[1])
    return [top, *fork]


def model(old: dict[str, Any], theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Path by path: what one side alone has changed is as that side has it. The other's name for what went wrong."""
    made, collisions = {}, set()
    for path in old.keys() | theirs.keys() | ours.keys():
        before, a, b = old.get(path), theirs.get(path), ours.get(path)
        if a == b or b == before:
            one = a
        elif a == before:
            one = b
        else:
            collisions.add(path)
            continue
        if one is not None:
            made[path] = one
    lost = {path for path in made if (up := path.rpartition("/")[0]) and made.get(up, (None,))[0] != "directory"}
    return made, collisions | lost


def check(layers: Layers, fork: list[str], theirs: list[str], ours: list[str]) -> list[str]:
    trees = [layers.shown(stack, None, plain) for stack in (fork, theirs, ours)]
    made, wrong = model(*trees)
    target, collisions = committed(layers, fork, theirs, ours)
    assert bool(collisions) == bool(wrong), (collisions, wrong)
    if target is not None:
        shown = layers.shown([target, *theirs], None, plain)
        assert expected(made, shown) == {}
        again = layers.shown([target, *theirs], layers.new(), lambda at: (shutil.rmtree(at / "d", True), plain(at))[1])
        assert not any(path.startswith("/d") for path in again)
    return collisions


def theirs_step(at: Path) -> None:
    (at / "x/theirs").write_text("theirs")
    (at / "e").chmod(0o700)
    (at / "d/sub/theirs").write_text("theirs")


OURS: list[Any] = [
    lambda at: (at / "a").unlink(),
    lambda at: (at / "x/ours").write_text("ours"),
    lambda at: (at / "e/c").write_text("ours"),
    lambda at: (shutil.rmtree(at / "only"), (at / "only").write_text("file")),
    lambda at: ((at / "a").unlink(), (at / "a").mkdir(), (at / "a/in").touch()),
    lambda at: (at / "x").chmod(0o711),
    lambda at: os.setxattr(at / "d/sub", "user.mine", b"1"),
    lambda at: ((at / "new/deep").mkdir(parents=True), (at / "new/deep/f").touch(), os.symlink("f", at / "new/deep/l")),
    lambda at: os.link(at / "a", at / "again"),
    lambda at: (shutil.rmtree(at / "only"), (at / "only").mkdir(), (at / "only/low").write_text("begun anew")),
]


@pytest.mark.parametrize("step", OURS)
def test_what_does_not_collide_is_folded_back(layers: Layers, step: Any) -> None:
    fork = written(layers, base)
    assert check(layers, fork, forked(layers, fork, theirs_step), forked(layers, fork, step)) == []


@pytest.mark.parametrize(
    ("step", "paths"),
    [
        (lambda at: (at / "x/theirs").write_text("ours"), ["/x/theirs"]),
        (lambda at: (at / "e").chmod(0o755 ^ 0o1), ["/e"]),
        (lambda at: shutil.rmtree(at / "x"), ["/x/theirs"]),
        (lambda at: (shutil.rmtree(at / "d"), (at / "d").touch()), ["/d/sub/theirs"]),
    ],
)
def test_what_collides_is_told_and_nothing_made(layers: Layers, step: Any, paths: list[str]) -> None:
    fork = written(layers, base)
    assert check(layers, fork, forked(layers, fork, theirs_step), forked(layers, fork, step)) == paths


def test_the_other_way_round(layers: Layers) -> None:
    fork = written(layers, base)
    gone = forked(layers, fork, lambda at: shutil.rmtree(at / "x"))
    assert check(layers, fork, gone, forked(layers, fork, theirs_step)) == ["/x/theirs"]


def test_the_same_on_both_sides_does_not_collide(layers: Layers) -> None:
    fork = written(layers, base)
    both = [forked(layers, fork, theirs_step) for _ in range(2)]
    assert check(layers, fork, *both) == []


def test_a_directory_begun_anew_leaves_what_they_have_put_there(layers: Layers) -> None:
    fork = written(layers, base)
    ours = forked(layers, fork, lambda at: (shutil.rmtree(at / "d"), (at / "d").mkdir(), (at / "d/sub").mkdir()))
    check(layers, fork, forked(layers, fork, theirs_step), ours)


def test_files_are_not_copied_and_links_stay(layers: Layers) -> None:
    fork = written(layers, base)
    ours = forked(layers, fork, lambda at: (attributes(at), (at / "big").write_bytes(bytes(1 << 20))))
    target, _ = committed(layers, fork, forked(layers, fork, lambda at: (at / "n").touch()), ours)
    assert target is not None
    assert (layers.upper(target) / "big").samefile(layers.upper(ours[0]) / "big")
    assert (layers.upper(target) / "e/suid").samefile(layers.upper(target) / "e/again")


@settings(max_examples=amount(4, 25), deadline=None, suppress_health_check=list(HealthCheck))
@given(raw_layer(), raw_layer(), st.lists(raw_layer(), max_size=1), raw_layer())
def test_any_three(
    theirs: dict[str, str], ours: dict[str, str], both: list[dict[str, str]], below: dict[str, str]
) -> None:
    lowest = {
        path: "plain" if kind in ("opaque", "marked") else kind for path, kind in below.items() if kind != "whiteout"
    }
    with tempfile.TemporaryDirectory() as directory:
        layers = Layers(Path(directory))
        made = [theirs, ours, *both, lowest]
        ids = [layers.new() for _ in made]
        for ident, one in zip(ids, made, strict=True):
            make_raw(layers.upper(ident), one)
        fork = ids[2:]
        check(layers, fork, [ids[0], *fork], [ids[1], *fork])
