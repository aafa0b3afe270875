"""Security profiles: what they grant and cap. A restriction that cannot be enforced is refused, never ignored.

What containers get from a profile beside its limits (no new privileges, few capabilities, a seccomp filter, nothing of
the host mounted) every VM has here, whatever its profile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from boxwood.core.errors import BadRequest
from boxwood.core.model import ForkRequest, Resources

VCPUS = 1
MEMORY_MIB = 512
NAMES = ("permissive", "moderate", "restrictive")


@dataclass(frozen=True, slots=True)
class Profile:
    """`vcpus`, `memory_mib`: at most; None: no cap. `alone`: without a network, and with a root that is read-only."""

    name: str
    vcpus: float | None = None
    memory_mib: int | None = None
    alone: bool = False

    def applied(
        self,
        request: ForkRequest,
        vcpus: int | None = None,
        memory_mib: int | None = None,
        asked: bool | str | None = None,
    ) -> ForkRequest:
        """With what is asked for, or the usual size, within the caps. `asked`: of the network. BadRequest."""
        cores, memory = VCPUS if vcpus is None else vcpus, MEMORY_MIB if memory_mib is None else memory_mib
        sizes = Resources(
            vcpu=cores if self.vcpus is None else min(cores, self.vcpus),
            memory_mib=memory if self.memory_mib is None else min(memory, self.memory_mib),
        )
        mode = network(asked)
        if not self.alone:
            return replace(request, resources=sizes, network=mode)
        if mode == "internet":
            raise BadRequest(f"Invalid network: profile {self.name} has none")
        return replace(request, resources=sizes, network="none", read_only=True)


_PERMISSIVE = Profile("permissive")
_MODERATE = Profile("moderate", vcpus=1, memory_mib=512)
_RESTRICTIVE = Profile("restrictive", vcpus=0.5, memory_mib=256, alone=True)


def profile(name: str | None) -> Profile:
    """Of a name in either case; without one nothing is capped that was asked for. BadRequest."""
    if name is None or name == "":
        return Profile("moderate")
    wanted = name.lower()
    if wanted == "permissive":
        return _PERMISSIVE
    if wanted == "moderate":
        return _MODERATE
    if wanted == "restrictive":
        return _RESTRICTIVE
    raise BadRequest(f"Invalid profile: one of {', '.join(NAMES)}")


def network(asked: bool | str | None) -> str | None:
    """None: what the server gives."""
    if isinstance(asked, bool):
        return "internet" if asked else "none"
    if asked is not None and asked not in ("internet", "none"):
        raise BadRequest("Invalid network: internet, none, true or false")
    return asked
