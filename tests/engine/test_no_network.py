"""A host that cannot give networks: VMs come up with their loopback, and whoever asks is told why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from boxfixtures import Runner
from boxwood.engine.host import HostEngine

async def main(data, images, golden):
    engine = HostEngine(Path(data), Path(images))
    await engine.start()
    try:
        runner = Runner(engine, golden)
        await runner.boot(network=True)
        links = (await runner.run("cut -d: -f1 /proc/net/dev | tail -n +3")).text.split()
        usage = await engine.usage(runner.box.vm_id)
        found = {one.name: (one.active, one.why) async for one in engine.features()}
        print(json.dumps([links, runner.box.address, usage.sent, found["network of VMs"]]))
    finally:
        await engine.shutdown()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("hide", "word"),
    [("mount --bind /dev/null $(command -v nft)", "nft"), ("mount -o remount,ro,bind /proc/sys", "Read-only")],
    ids=["no nft", "no sysctl"],
)
def test_vms_have_their_loopback(data: Path, images: Path, golden: str, tmp_path: Path, hide: str, word: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    if "/proc/sys" in hide:
        if Path("/proc/sys/net/ipv4/ip_forward").read_text() != "0\n":
            pytest.skip("this host forwards already: there is nothing to be turned on")
        hide = f"mount --bind /proc/sys /proc/sys && {hide}"
    command = f"{hide} && exec {sys.executable} {script} {data} {images} {golden}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, check=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    links, address, sent, (active, why) = json.loads(done.stdout)
    assert (links, address, sent, active) == (["lo"], "", 0, False)
    assert word in why
