"""What a WarmPool's template asks of its VMs: what its container `executor` does, or else the first that is no sidecar.

A VM is the whole pod: it has one root file system, which the container's image is, and so no volumes. What cannot be
given is refused by name; what says nothing about a VM (ports, pull policies, probes, labels, the sidecar) is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from boxwood.core.model import Resources
from boxwood.dialects.arl import quantities
from boxwood.dialects.arl_kubernetes.objects import Object
from boxwood.dialects.arl_kubernetes.status import Cause

WORKSPACE = "/workspace"
EXECUTOR, SIDECAR = "executor", "sidecar"
MOST_DIRECTORIES = 32
_PLACE = "spec.template.spec"
_POD_REFUSED = ("initContainers", "ephemeralContainers", "hostNetwork", "hostPID", "hostIPC", "runtimeClassName")
_CONTAINER_REFUSED = ("envFrom", "volumeDevices", "lifecycle")
_POWERS = ("privileged", "capabilities", "runAsUser", "runAsGroup", "procMount", "readOnlyRootFilesystem")
# What containers are kept alive with that are there to be run in.
_IDLE = re.compile(
    r"(exec )?(sleep +(infinity|inf|\d+[smhd]?)|tail +-f +/dev/null|while (true|:); *do +sleep +\d+; *done)"
)
_SHELLS = re.compile(r"(/usr)?(/bin/)?(sh|bash|ash|dash)")


@dataclass(frozen=True, slots=True)
class Pod:
    """`command`: what is started in a VM when a sandbox takes it, none if it would only keep a container alive."""

    image: str
    env: dict[str, str]
    workdir: str
    directories: tuple[str, ...]
    command: tuple[str, ...]
    resources: Resources

    @property
    def stored(self) -> Object:
        """What a sandbox keeps of it."""
        made: Object = {"workDir": self.workdir, "directories": list(self.directories)}
        return made | ({"env": self.env} if self.env else {}) | ({"command": self.command} if self.command else {})


def read(spec: Object) -> tuple[Pod, list[Cause]]:
    """Of a WarmPool's spec that fits its schema. The pod counts only without causes."""
    pod = spec["template"].get("spec")
    if pod is None:
        return NONE, [Cause.required(_PLACE)]
    causes = [Cause.forbidden(f"{_PLACE}.{name}", "not supported") for name in _POD_REFUSED if pod.get(name)]
    at, container, found = _executor(pod["containers"])
    causes += found
    if container is None:
        return NONE, causes
    place = f"{_PLACE}.containers[{at}]"
    if not container.get("image"):
        causes.append(Cause.required(f"{place}.image"))
    causes += [
        Cause.forbidden(f"{place}.{name}", "not supported") for name in _CONTAINER_REFUSED if container.get(name)
    ]
    causes += _powers(pod, _PLACE)
    causes += _powers(container, place)
    env, wrong = _environment(container.get("env", []), place)
    mounts, wrong_mounts = _mounts(pod, container, place)
    resources, wrong_resources = _resources(container.get("resources", {}), f"{place}.resources")
    causes += [*wrong, *wrong_mounts, *wrong_resources]
    workdir = mounts.get("workspace") or container.get("workingDir") or WORKSPACE
    if not _is_path(workdir):
        causes.append(Cause.invalid(f"{place}.workingDir", workdir, "an absolute path"))
    if container.get("args") and not container.get("command"):
        causes.append(Cause.forbidden(f"{place}.args", "arguments need a command: an image's own is not known"))
    directories = tuple(dict.fromkeys((workdir, *mounts.values())))
    command = _main((*container.get("command", ()), *container.get("args", ())))
    return Pod(container.get("image", ""), env, workdir, directories, command, resources), causes


NONE = Pod("", {}, WORKSPACE, (WORKSPACE,), (), Resources())  # of a pool that has gone


def _executor(containers: list[Object]) -> tuple[int, Object | None, list[Cause]]:
    named = [at for at, one in enumerate(containers) if one["name"] == EXECUTOR]
    others = [at for at, one in enumerate(containers) if one["name"] not in (EXECUTOR, SIDECAR)]
    chosen = (named or others)[:1]
    if not chosen:
        return 0, None, [Cause.required(f"{_PLACE}.containers", f"a container named {EXECUTOR}")]
    why = f"a VM is one container: {EXECUTOR}, and a {SIDECAR}, which is ignored"
    causes = [Cause.forbidden(f"{_PLACE}.containers[{at}]", why) for at in (*named, *others) if at != chosen[0]]
    return chosen[0], containers[chosen[0]], causes


def _powers(value: Object, place: str) -> Iterator[Cause]:
    context = value.get("securityContext")
    if isinstance(context, dict):
        wanted = (name for name in _POWERS if context.get(name) not in (None, False, {}, 0))
        yield from (Cause.forbidden(f"{place}.securityContext.{name}", "not supported") for name in wanted)


def _environment(entries: list[Object], place: str) -> tuple[dict[str, str], list[Cause]]:
    env: dict[str, str] = {}
    causes: list[Cause] = []
    for at, entry in enumerate(entries):
        name = entry["name"]
        if "valueFrom" in entry:
            causes.append(Cause.forbidden(f"{place}.env[{at}].valueFrom", "not supported: give the value"))
        if not name or "=" in name or "\0" in name + entry.get("value", ""):
            causes.append(Cause.invalid(f"{place}.env[{at}].name", name, "no name of a variable, or a value with NUL"))
        env[name] = entry.get("value", "")
    return env, causes


def _mounts(pod: Object, container: Object, place: str) -> tuple[dict[str, str], list[Cause]]:
    """Where volumes are to be, by their names: directories of the VM's own disk, which is empty for each VM too."""
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    mounts: dict[str, str] = {}
    causes: list[Cause] = []
    for at, mount in enumerate(container.get("volumeMounts", [])):
        name, path = mount["name"], mount["mountPath"]
        other = [key for key in volumes.get(name, {}) if key not in ("name", "emptyDir")]
        if name not in volumes:
            causes.append(Cause("FieldValueNotFound", f"{place}.volumeMounts[{at}].name", f'Not found: "{name[:63]}"'))
        elif other:
            why = f"volumes of {other[0][:63]} are not supported, only emptyDir"
            causes.append(Cause.forbidden(f"{place}.volumeMounts[{at}]", why))
        elif not _is_path(path):
            causes.append(Cause.invalid(f"{place}.volumeMounts[{at}].mountPath", path, "an absolute path"))
        mounts[name] = path
    if len(mounts) > MOST_DIRECTORIES:
        causes.append(Cause.invalid(f"{place}.volumeMounts", len(mounts), f"at most {MOST_DIRECTORIES}"))
    return mounts, causes


def _is_path(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("/") and "\0" not in path and len(path) <= 1024


def _resources(given: Object, place: str) -> tuple[Resources, list[Cause]]:
    """Of the limits; what is requested says only how pods are put on machines."""
    causes: list[Cause] = []
    found: dict[str, int] = {}
    known: dict[str, tuple[str, Callable[[Any], int]]] = {
        "cpu": ("vcpu", quantities.vcpus),
        "memory": ("memory_mib", quantities.mib),
        "ephemeral-storage": ("disk_mib", quantities.mib),
    }
    for which in ("limits", "requests"):
        for name, value in given.get(which, {}).items():
            at = f"{place}.{which}[{name[:63]}]"
            if name not in known:
                causes.append(Cause.forbidden(at, "VMs have cpu, memory and ephemeral-storage"))
                continue
            member, make = known[name]
            try:
                amount = make(value)
            except ValueError as error:
                causes.append(Cause.invalid(at, value, str(error)))
            else:
                if which == "limits":
                    found[member] = amount
    return Resources(**found), causes


def _main(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The program that is to run in the VM, if it does more than to keep a container alive."""
    words = argv
    if len(argv) == 3 and _SHELLS.fullmatch(argv[0]) and argv[1] in ("-c", "-lc"):
        words = (argv[2].strip().rstrip(";").strip(),)
    text = " ".join(words).removeprefix("/bin/").removeprefix("/usr/bin/")
    return () if not argv or _IDLE.fullmatch(text) or text in ("cat", "sh", "bash", "/bin/sh", "/bin/bash") else argv
