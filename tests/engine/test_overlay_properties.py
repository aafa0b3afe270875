"""Random operations over random trees of forks agree with a plain model in memory, before and after merging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from amounts import amount
from engine.forktree import ForkTree, Host
from engine.plaintree import Operation

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IMAGE: list[Operation] = [
    ("mkdir", "a"), ("write", "a/a", b"image"), ("write", "a/b", b"image"), ("mkdir", "a/c"), ("write", "a/c/a", b"x"),
    ("link", "a/a", "a/c/b"), ("mkdir", "c"), ("symlink", "c/a", "-/nowhere"), ("sparse", "b", b"image"),
    ("attributes", "a/c", 0o1777, (7, 8)), ("setxattr", "a/c", "k", b"image"), ("write", "c/b", bytes(5000)),
]  # fmt: skip

# Few, so that operations meet.
paths = st.sampled_from(["a", "b", "c", "a/a", "a/b", "a/c", "a/c/a", "a/c/b", "c/a", "c/b", "b/a", "c/a/b"])
directories = st.sampled_from(["a", "b", "c", "a/c", "c/a"])
names = st.sampled_from("abc")
pieces = st.binary(min_size=0, max_size=6)


def _operation(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.tuples(st.just(name), *arguments)


operations = st.one_of(
    _operation("write", paths, pieces),
    _operation("append", paths, pieces),
    _operation("truncate", paths, st.sampled_from([0, 3, 9000])),
    _operation("sparse", paths, pieces),
    _operation("unlink", paths),
    _operation("mkdir", paths),
    _operation("rmdir", paths),
    _operation("rmtree", directories),
    _operation("symlink", paths, st.just("-/nowhere")),
    _operation("mkfifo", paths),
    _operation("link", paths, paths),
    _operation("rename", paths, paths),
    _operation("rename", directories, directories),
    _operation("attributes", paths, st.sampled_from([0o600, 0o755, 0o1777, 0]), st.sampled_from([(0, 0), (7, 65535)])),
    _operation("setxattr", paths, st.sampled_from("kl"), pieces),
    _operation("removexattr", paths, st.sampled_from("kl")),
    _operation("utime", paths, st.sampled_from([1, 10**18 + 7])),
)
# What replaces one kind of thing by another, in one go: random operations seldom meet at one path.
replacements = st.one_of(
    st.tuples(directories, pieces).map(lambda a: [("rmtree", a[0]), ("write", *a)]),
    st.tuples(directories).map(lambda a: [("rmtree", *a), ("mkdir", *a)]),
    st.tuples(directories, names, pieces).map(
        lambda a: [("rmtree", a[0]), ("mkdir", a[0]), ("write", f"{a[0]}/{a[1]}", a[2])]
    ),
    paths.map(lambda path: [("unlink", path), ("mkdir", path), ("mkdir", f"{path}/a")]),
    st.tuples(directories, paths).map(
        lambda a: [("write", f"{a[0]}/b", b"twice"), ("unlink", a[1]), ("link", f"{a[0]}/b", a[1])]
    ),
)
some = st.lists(st.one_of(operations.map(lambda one: [one]), replacements), min_size=1, max_size=8).map(
    lambda found: [one for group in found for one in group]
)
which = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("change"), which, some),
    st.tuples(st.just("fork"), which, st.tuples(st.booleans(), some)),
    st.tuples(st.just("fork"), which, st.tuples(st.just(True), some)),
    st.tuples(st.just("merge"), which, st.integers(1, 6)),
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("host"), IMAGE)
    yield made
    made.close()


def check(host: Host, script: list[tuple[Any, ...]]) -> None:
    """Do what the script says, and then seal and merge all that can be: nobody sees a difference."""
    tree = ForkTree(host)
    try:
        for what, number, argument in script:
            vm = tree.vms[number % len(tree.vms)]
            if what == "change":
                tree.change(vm, argument)
            elif what == "fork":
                limited, then = argument
                tree.change(tree.fork(vm, limited=limited), then)
            else:
                tree.merge(vm, argument)
        for vm in tree.vms:
            tree.change(vm, [])
            tree.seal(vm)
        for vm in tree.vms:
            tree.merge(vm, len(vm.layers))
        for vm in tree.vms:
            tree.change(vm, [])
    finally:
        tree.end()


def searching(examples: int) -> Callable[[Any], Any]:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


# What random steps rarely meet, each time: names of one file in a file system of their own; a directory that becomes a
# file and a directory again, above what it hid; what an opaque directory hides, and what is deleted in it; holes.
LINKED: list[tuple[Any, ...]] = [
    ("fork", 0, (True, [("write", "z", b"1"), ("link", "z", "y"), ("append", "z", b"2"), ("link", "a/a", "x")])),
    ("fork", 1, (True, [("append", "y", b"3")])),
    ("change", 1, [("rename", "y", "a/y"), ("unlink", "z")]),
]
REPLACED: list[tuple[Any, ...]] = [
    ("change", 0, [("rmtree", "a"), ("write", "a", b"a file")]),
    ("fork", 0, (True, [("unlink", "a"), ("mkdir", "a"), ("write", "a/c", b"1"), ("setxattr", "a", "k", b"2")])),
    ("fork", 1, (False, [("unlink", "a/c"), ("mkdir", "a/c"), ("write", "a/c/b", b"new"), ("utime", "a/c", 1)])),
    ("merge", 2, 1),
    ("fork", 2, (True, [("rmtree", "a/c"), ("mkdir", "a/c"), ("rename", "b", "a/b")])),
    ("merge", 3, 3),
]
SPARSE: list[tuple[Any, ...]] = [
    ("fork", 0, (True, [("sparse", "d", b"x"), ("attributes", "b", 0o600, (7, 65535)), ("utime", "b", 10**18 + 7)])),
    ("fork", 1, (False, [("link", "d", "e"), ("truncate", "e", 9000), ("sparse", "b", b"more")])),
    ("merge", 2, 2),
]


@searching(amount(2, 4))
@example(LINKED)
@example(REPLACED)
@example(SPARSE)
@given(st.lists(steps, min_size=3, max_size=9))
def test_forks_show_what_a_plain_tree_would(host: Host, script: list[tuple[Any, ...]]) -> None:
    check(host, script)


@pytest.mark.full
@pytest.mark.timeout(1800)
@searching(300)
@given(st.lists(steps, min_size=4, max_size=25))
def test_forks_show_what_a_plain_tree_would_at_length(host: Host, script: list[tuple[Any, ...]]) -> None:
    check(host, script)
