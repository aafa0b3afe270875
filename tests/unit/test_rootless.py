"""Without root: maps and where they come from, whose a directory is, which cgroups are ours, what is in the way."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from boxwood.core.config import Config
from boxwood.core.errors import Unsupported
from boxwood.core.held import Held
from boxwood.core.model import Resources
from boxwood.engine import idmap, modes
from boxwood.engine.api import EngineUnavailable, Feature, Limits
from boxwood.engine.cgroups import delegated
from boxwood.engine.cgroups.cgroups import LimitUnavailable
from boxwood.engine.cgroups.delegated import Bare
from boxwood.engine.cgroups.separate import Separate
from boxwood.engine.cgroups.unified import Unified
from boxwood.engine.idmap import IdMap, NoSubordinateIds
from boxwood.engine.trials import rootless as trials
from boxwood.engine.trials.common import Check

INSTANCE = "01J8Z3K4M5N6P7Q8R9S0T1V2W3"
ALONE = IdMap(1000, 1001)
MANY = IdMap(1000, 1001, 65536, 100000, 200000, ("/usr/bin/newuidmap", "/usr/bin/newgidmap"))


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """An /etc whose subordinate ids are `NAME` and `ID`'s."""
    place = tmp_path / "etc"
    place.mkdir()
    for name in idmap.TOOLS:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    return place


def find(etc: Path, uids: str, gids: str) -> IdMap:
    (etc / "subuid").write_text(uids)
    (etc / "subgid").write_text(gids)
    return idmap.subordinate(etc, str(etc.parent))


def test_a_map_of_one_and_of_many() -> None:
    assert ALONE.lines(1000, 0) == ((0, 1000, 1),)
    assert MANY.lines(MANY.uid, MANY.subuid) == ((0, 1000, 1), (1, 100000, 65535))
    assert (ALONE.nested(), MANY.nested()) == ("0 0 1", "0 0 1\n1 1 65535")
    assert IdMap.from_json(MANY.to_json()) == MANY


def test_subordinate_ids_by_name_and_number(etc: Path) -> None:
    uid = os.geteuid()
    found = find(etc, f"other:1:65536\n{uid}:300000:65536\n", f"{uid}:400000:65536\n")
    assert (found.count, found.subuid, found.subgid) == (65536, 300000, 400000)
    assert found.tools == (str(etc.parent / "newuidmap"), str(etc.parent / "newgidmap"))


def test_the_longest_range_counts_and_the_shorter_kind(etc: Path) -> None:
    uid = os.geteuid()
    found = find(etc, f"{uid}:5:10\n{uid}:300000:70000\n", f"{uid}:400000:999\n")
    assert (found.subuid, found.subgid, found.count) == (300000, 400000, 1000)


@pytest.mark.parametrize("line", ["", "0", "{uid}:x:65536", "{uid}:1:0", "{uid}:1:-5", "{uid}:1:2:3", "{uid}:1", "#"])
def test_lines_that_make_no_sense_are_none(etc: Path, line: str) -> None:
    with pytest.raises(NoSubordinateIds, match="subuid has no entry"):
        find(etc, line.format(uid=os.geteuid()), f"{os.geteuid()}:1:1")


def test_what_is_missing_is_named(etc: Path) -> None:
    with pytest.raises(NoSubordinateIds, match=r"subuid cannot be read"):
        idmap.subordinate(etc)
    (etc.parent / "newgidmap").unlink()
    with pytest.raises(NoSubordinateIds, match="newgidmap is not installed"):
        find(etc, f"{os.geteuid()}:1:9", f"{os.geteuid()}:1:9")


def test_with_which_ids_a_server_starts() -> None:
    assert trials.ids_of([Check(trials.SUBORDINATE, False, "")]) == idmap.own()


# --- whose a directory is


def mine(count: int = 1) -> IdMap:
    return replace(MANY, uid=os.geteuid(), gid=os.getegid(), count=count)


def test_a_directory_stays_with_its_ids(tmp_path: Path) -> None:
    modes.claim(tmp_path, mine(65536))
    modes.claim(tmp_path, mine(65536))
    for other in (mine(1), mine(1000), replace(mine(65536), subuid=7), replace(mine(65536), gid=7)):
        with pytest.raises(EngineUnavailable, match="65535 subordinate ids from 100000"):
            modes.claim(tmp_path, other)


def test_more_ids_than_before_are_no_harm(tmp_path: Path) -> None:
    modes.claim(tmp_path, mine(1))
    modes.claim(tmp_path, mine(1000))
    modes.claim(tmp_path, mine(65536))
    assert json.loads((tmp_path / modes.NAME).read_text())["count"] == 65536


def test_images_are_good_for_all_ids_of_a_user(tmp_path: Path) -> None:
    modes.claim(tmp_path, mine(65536), layers=False)
    modes.claim(tmp_path, mine(1), layers=False)


def test_root_and_others_are_refused(tmp_path: Path) -> None:
    modes.claim(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineUnavailable, match=f"belongs to uid {os.geteuid()}"):
        modes.claim(tmp_path, replace(ALONE, uid=os.geteuid() + 1))
    modes.claim(tmp_path, mine())
    with pytest.raises(EngineUnavailable, match="run it as that user"):
        modes.claim(tmp_path, None)


@pytest.mark.parametrize("text", ["", "[]", '{"uid": "x"}', "\xff"])
def test_a_damaged_mark_is_not_believed(tmp_path: Path, text: str) -> None:
    (tmp_path / modes.NAME).write_text(text, "latin-1")
    with pytest.raises(EngineUnavailable, match=modes.NAME.replace(".", "[.]")):
        modes.claim(tmp_path, mine())


# --- what is in the way


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_the_setting_in_the_way_is_named(tmp_path: Path, setting: str, value: str, said: str) -> None:
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(f"{value}\n")
    assert said in trials.obstacle("refused", tmp_path, tmp_path / "status")
    assert trials.obstacle("", tmp_path, tmp_path / "status") == ""


def test_a_containers_filter_and_nothing_at_all(tmp_path: Path) -> None:
    status = tmp_path / "status"
    assert "max_user_namespaces" in trials.obstacle("refused", tmp_path, status)
    status.write_text("NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    assert "seccomp" in trials.obstacle("refused", tmp_path, status)


# --- cgroups


class Host:
    """A tree of directories in the place of /sys/fs/cgroup, and what /proc says of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.mounts, self.own = root, root / "mounts", root / "own"
        self._mounts: list[str] = []
        self._own: list[str] = []

    def mount(self, kind: str, names: str, path: str, files: dict[str, str] | None = None) -> Path:
        top = self.root / (names or "unified")
        at = top / path.strip("/")
        at.mkdir(parents=True)
        for name, text in {"cgroup.procs": "", **(files or {})}.items():
            (at / name).write_text(text)
        if kind == "cgroup2":  # as the kernel makes it
            (at / f"boxwood-{INSTANCE}").mkdir()
            (at / f"boxwood-{INSTANCE}" / "cgroup.subtree_control").write_text("")
        self._mounts.append(f"x {top} {kind} rw,{names} 0 0\n")
        self._own.append(f"1:{names}:{path}\n")
        self.mounts.write_text("".join(self._mounts))
        self.own.write_text("".join(self._own))
        return at

    def find(self) -> object:
        return delegated.find(INSTANCE, self.mounts, self.own)


V2 = {"cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": ""}


def test_version_2_below_ones_own_group(tmp_path: Path) -> None:
    at = Host(tmp_path)
    place = at.mount("cgroup2", "", "/user.slice/a.scope", V2)
    found = at.find()
    assert isinstance(found, Unified) and list(found._parents()) == [f"{place}/boxwood-{INSTANCE}"]
    assert not found.pids_elsewhere


def test_also_when_we_have_moved_aside(tmp_path: Path) -> None:
    at = Host(tmp_path)
    place = at.mount("cgroup2", "", "/a.scope", V2)
    at.own.write_text("0::/a.scope/boxwood-aside\n")
    found = at.find()
    assert isinstance(found, Unified) and list(found._parents()) == [f"{place}/boxwood-{INSTANCE}"]


def test_version_1_where_it_is_ours(tmp_path: Path) -> None:
    at = Host(tmp_path)
    at.mount("cgroup", "memory", "/mine")
    found = at.find()
    assert isinstance(found, Separate) and found.controllers == {"memory"} and found.pids_elsewhere
    with pytest.raises(LimitUnavailable, match="Delegate=yes"):
        found.make(INSTANCE, Limits(vcpu=1))


def test_a_group_of_another_namespace_is_not_ours(tmp_path: Path) -> None:
    at = Host(tmp_path)
    at.mount("cgroup2", "", "/a", V2)
    at.own.write_text("0::/../../a\n")
    assert isinstance(at.find(), Bare)


def test_without_any_the_rest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("")
    (tmp_path / "own").write_text("0::/\n")
    found = delegated.find(INSTANCE, tmp_path / "mounts", tmp_path / "own")
    assert found.make(INSTANCE, Limits(pids=64)) == []
    for wanted in (Limits(memory_mib=64), Limits(vcpu=1)):
        with pytest.raises(LimitUnavailable, match="Delegate=yes"):
            found.make(INSTANCE, wanted)
    with pytest.raises(LimitUnavailable, match="cannot be changed"):
        found.change(INSTANCE, Limits(pids=65), Limits(pids=64))
    with pytest.raises(LimitUnavailable, match="stand still"):
        found.freeze(INSTANCE)
    assert found.sweep() == set() and found.remove(INSTANCE)


# --- limits that nobody holds


class Asked:
    def __init__(self, **active: bool) -> None:
        self._active = active

    async def features(self):  # type: ignore[no-untyped-def]
        for name, active in self._active.items():
            yield Feature(name.replace("_", " "), active, "no such controller")


async def test_a_limit_that_cannot_be_held_is_no_default(tmp_path: Path) -> None:
    held = Held(Config(tmp_path))
    await held.learn(Asked(cgroup_memory=True, cgroup_cpu=True))  # type: ignore[arg-type]
    row = SimpleNamespace(vcpu=None, memory_mib=None)
    assert held.of(row, Limits(2, 2048)) == Limits(2, 2048)  # type: ignore[arg-type]
    held.check(Resources(memory_mib=512, vcpu=1))
    await held.learn(Asked(cgroup_memory=False, cgroup_cpu=True))  # type: ignore[arg-type]
    assert held.of(row, Limits(2, 2048)) == Limits(2, 0)  # type: ignore[arg-type]
    row.memory_mib = 64
    assert held.of(row, Limits(2, 64)) == Limits(2, 64)  # type: ignore[arg-type]
    held.check(Resources(vcpu=1))
    with pytest.raises(Unsupported, match="memory_mib cannot be held to here: no such controller"):
        held.check(Resources(memory_mib=512))


async def test_an_operator_who_wants_it_is_told_at_the_start(tmp_path: Path) -> None:
    held = Held(Config(tmp_path, memory_mib=1024))
    with pytest.raises(EngineUnavailable, match="memory_mib is 1024 by configuration"):
        await held.learn(Asked(cgroup_memory=False))  # type: ignore[arg-type]
