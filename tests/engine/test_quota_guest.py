"""Project quotas in a machine that has them: each check of guestchecks.py and quotachecks/, made in one boot of Debian's kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import guest
import guestchecks

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(guest.SECONDS + 600)]
DISKS_MIB = (1024, 1024, 3072)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each check said: empty, or how it failed."""
    if wanted := guest.missing():
        pytest.fail(f"the machine with quotas needs {wanted}: `scripts/packages quotas {wanted}`")
    scratch = tmp_path_factory.mktemp("guest")
    script, found = Path(guestchecks.__file__), dict[str, str]()
    for line in guest.run(script, script.parent / "quotachecks", DISKS_MIB, scratch):
        print(line)
        if line.startswith('{"check"'):
            told = json.loads(line)
            found[told["check"]] = told["failed"]
    yield found


@pytest.mark.parametrize("name", guestchecks.CHECKS)
def test_in_a_kernel_with_quotas(said: dict[str, str], name: str) -> None:
    assert name in said, "the machine did not come so far"
    assert not said[name], said[name]
