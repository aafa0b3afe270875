"""Which worker runs which files: each a file at a time, but for those that one thing of the host is for, one after the other."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# Their internet is the host's routes to it, of which there can be one: two workers would wait for each other.
INTERNET = frozenset(
    {
        "tests/engine/test_network.py", "tests/engine/test_network_remains.py", "tests/engine/test_network_rootless.py",
        "tests/engine/test_network_router.py", "tests/engine/test_policies.py", "tests/engine/test_policy_proxy.py",
        "tests/engine/test_policy_router.py", "tests/engine/test_internet.py",
        "tests/attack/test_policies.py", "tests/attack/test_requests.py",
    }
)  # fmt: skip


class Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "the internet" if file in INTERNET else file
