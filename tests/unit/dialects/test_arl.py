"""What ARL's protocols write values in: Go's durations, Kubernetes' quantities, patches, what a pod asks for."""

from __future__ import annotations

import pytest

from boxwood.dialects.arl import durations, quantities
from boxwood.dialects.arl.steps import absolute
from boxwood.dialects.arl_kubernetes import patches, pods
from boxwood.dialects.arl_kubernetes.status import Refused

MERGE, STEPS = "application/merge-patch+json", "application/json-patch+json"


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("30s", 30, "30s"), ("5m", 300, "5m0s"), ("1h30m", 5400, "1h30m0s"), ("500ms", 0.5, "500ms"), ("0", 0, "0s"),
        ("1.5h", 5400, "1h30m0s"), (".5s", 0.5, "500ms"), ("-2us", -0.000002, "-2µs"), ("+1m0.25s", 60.25, "1m0.25s"),
        ("1500µs", 0.0015, "1.5ms"), ("781ms", 0.781, "781ms"), ("100ns", 1e-7, "100ns"), ("0s", 0, "0s"),
    ],
)  # fmt: skip
def test_durations(text, seconds, shown):
    assert durations.seconds(text) == pytest.approx(seconds)
    assert durations.text(durations.nanoseconds(text)) == shown
    assert durations.nanoseconds(shown) == durations.nanoseconds(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "invalid duration"), ("5", "missing unit"), ("5 m", "unknown unit"), ("soon", "invalid duration"),
        ("1d", "unknown unit"), (".s", "invalid duration"), ("9999999999h", "invalid duration"), ("-", "invalid"),
        ("1m-5s", "unknown unit"), ("1" * 65 + "s", "too long"), ("٣s", "invalid duration"),
    ],
)  # fmt: skip
def test_what_is_no_duration(text, why):
    with pytest.raises(ValueError, match=why):
        durations.nanoseconds(text)


def test_quantities():
    assert [quantities.vcpus(value) for value in ("1", 2, "500m", "1500m", 0.5, "1e0")] == [1, 2, 1, 2, 1, 1]
    assert [quantities.mib(value) for value in ("512Mi", "1Gi", "1G", "1", "1.5Gi", "1e9")] == [
        512,
        1024,
        954,
        1,
        1536,
        954,
    ]
    for wrong in ("", "x", "1X", "-1", "0", "1e999", "1Mi2", True, "1" * 100):
        with pytest.raises(ValueError):
            quantities.mib(wrong)


def test_merge_patches():
    value = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert patches.patched(value, MERGE, b'{"a":{"b":null,"c":[3]},"e":{"f":null}}') == {
        "a": {"c": [3]},
        "d": 1,
        "e": {},
    }
    assert value == {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    with pytest.raises(Refused, match="must be an object"):
        patches.patched(value, MERGE, b"[]")


@pytest.mark.parametrize(
    ("steps", "made"),
    [
        (b'[{"op":"add","path":"/a/c/-","value":3}]', {"a": {"c": [1, 2, 3]}, "d/e": 1}),
        (b'[{"op":"add","path":"/a/c/0","value":0}]', {"a": {"c": [0, 1, 2]}, "d/e": 1}),
        (b'[{"op":"remove","path":"/d~1e"}]', {"a": {"c": [1, 2]}}),
        (b'[{"op":"move","from":"/a/c","path":"/f"}]', {"a": {}, "d/e": 1, "f": [1, 2]}),
        (b'[{"op":"copy","from":"/d~1e","path":"/a/c/1"}]', {"a": {"c": [1, 1, 2]}, "d/e": 1}),
        (b'[{"op":"replace","path":"","value":{"x":1}}]', {"x": 1}),
    ],
)
def test_json_patches(steps, made):
    value = {"a": {"c": [1, 2]}, "d/e": 1}
    assert patches.patched(value, STEPS, steps) == made
    assert value == {"a": {"c": [1, 2]}, "d/e": 1}


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (b"{}", "is a list"), (b"[1]", "no operation"), (b'[{"op":"x","path":""}]', "unknown operation"),
        (b'[{"op":"add","path":"/a"}]', "needs a value"), (b'[{"op":"add","path":"a","value":1}]', "begins with /"),
        (b'[{"op":"remove","path":"/nope"}]', "no such member"), (b'[{"op":"remove","path":"/c/9"}]', "no such item"),
        (b'[{"op":"remove","path":"/c/01x"}]', "no such item"), (b'[{"op":"test","path":"/a","value":2}]', "test failed"),
        (b'[{"op":"move","from":"/b","path":"/b/x"}]', "into itself"), (b'[{"op":"move","path":"/b"}]', "`from`"),
        (b'[{"op":"remove","path":""}]', "no such member"), (b'[{"op":"add","path":"","value":1}]', "leaves no object"),
        (b'[{"op":"add","path":"/a/x","value":1}]', "has no members"),
    ],
)  # fmt: skip
def test_json_patches_that_cannot_be_applied(steps, why):
    with pytest.raises(Refused, match=why):
        patches.patched({"a": 1, "b": {}, "c": [1]}, STEPS, steps)


def test_a_patch_does_not_grow_without_end():
    """Each copy could double what there is."""
    doubling = ",".join(f'{{"op":"copy","from":"/a","path":"/a/{n}"}}' for n in range(60))
    with pytest.raises(Refused, match="copies more than"):
        patches.patched({"a": {"x": "y" * 1000}}, STEPS, f"[{doubling}]".encode())
    nested = ",".join(
        '{"op":"move","from":"/a","path":"/b"},{"op":"add","path":"/a","value":{}},{"op":"move","from":"/b","path":"/a/x"}'
        for _ in range(300)
    )
    deep = patches.patched({"a": {}}, STEPS, f"[{nested}]".encode())
    assert set(deep) == {"a"}


def pod(**container):
    return pods.read({"template": {"spec": {"containers": [{"name": "executor", "image": "i", **container}]}}})


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (["/bin/sh", "-c", "sleep infinity"], False), (["sleep", "infinity"], False), (["tail", "-f", "/dev/null"], False),
        (["/bin/bash", "-c", "while true; do sleep 30; done"], False), (["sleep", "3600"], False), (["/bin/sh"], False),
        (["cat"], False), ([], False), (["python", "server.py"], True), (["sh", "-c", "sleep 5; rm -rf x"], True),
        (["/bin/sh", "-c", "exec sleep infinity"], False), (["sleep", "5", "6"], True),
    ],
)  # fmt: skip
def test_commands_that_only_keep_a_container_alive(command, runs):
    made, causes = pod(command=command)
    assert causes == [] and made.command == (tuple(command) if runs else ())


def test_the_executor_is_the_container_of_that_name():
    spec = {"containers": [{"name": "sidecar", "image": "s"}, {"name": "main", "image": "m"}]}
    made, causes = pods.read({"template": {"spec": spec}})
    assert (made.image, causes) == ("m", [])
    spec["containers"].append({"name": "executor", "image": "e"})
    made, causes = pods.read({"template": {"spec": spec}})
    assert made.image == "e" and [cause.field for cause in causes] == ["spec.template.spec.containers[1]"]


def test_limits_are_what_counts():
    asked = {"limits": {"cpu": "1500m", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "1Mi"}}
    made, causes = pod(resources=asked)
    assert causes == [] and (made.resources.vcpu, made.resources.memory_mib) == (2, 1024)


def test_paths():
    assert [absolute(path, "/w") for path in ("a", "/a", "../a")] == ["/w/a", "/a", "/w/../a"]
