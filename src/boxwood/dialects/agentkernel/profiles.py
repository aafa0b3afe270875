"""Security profiles: what they grant and cap. A restriction that cannot be enforced is refused, never ignored.

What containers get from a profile beside its limits (no new privileges, few capabilities, a seccomp filter, nothing of
the host mounted) every VM has here, whatever its profile.
"""

from __future__ import annotations

from dataclasses import dataclass

from boxwood.core.errors import BadRequest, Unsupported
from boxwood.core.model import Resources

VCPUS = 1
MEMORY_MIB = 512
NAMES = ("permissive", "moderate", "restrictive")


@dataclass(frozen=True, slots=True)
class Profile:
    """`vcpus`, `memory_mib`: at most; None: no cap."""

    name: str
    vcpus: int | None = None
    memory_mib: int | None = None

    def resources(self, vcpus: int | None, memory_mib: int | None) -> Resources:
        """What is asked for, or the usual size, within the caps."""
        cores, memory = VCPUS if vcpus is None else vcpus, MEMORY_MIB if memory_mib is None else memory_mib
        return Resources(
            vcpu=cores if self.vcpus is None else min(cores, self.vcpus),
            memory_mib=memory if self.memory_mib is None else min(memory, self.memory_mib),
        )


_PERMISSIVE = Profile("permissive")
_MODERATE = Profile("moderate", vcpus=1, memory_mib=512)


def profile(name: str | None) -> Profile:
    """Of a name in either case; without one nothing is capped that was asked for. BadRequest, Unsupported."""
    if name is None or name == "":
        return Profile("moderate")
    wanted = name.lower()
    if wanted == "permissive":
        return _PERMISSIVE
    if wanted == "moderate":
        return _MODERATE
    if wanted == "restrictive":
        raise Unsupported(
            "profile restrictive is not supported by this server yet: it cannot make the root file system read-only "
            'nor give half a CPU. The nearest is profile moderate with "network": "none" and "memory_mb": 256'
        )
    raise BadRequest(f"Invalid profile: one of {', '.join(NAMES)}")


def network(asked: bool | str | None) -> str | None:
    """None: what the server gives."""
    if isinstance(asked, bool):
        return "internet" if asked else "none"
    if asked is not None and asked not in ("internet", "none"):
        raise BadRequest("Invalid network: internet, none, true or false")
    return asked
