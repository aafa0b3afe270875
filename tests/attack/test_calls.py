"""A static program without a C library (programs/calls.c) tries forbidden system calls by number, through all doors of
the processor: syscall, x32 numbers, int 0x80 (attacks.md, items 3 to 6). The same program outside shows that it can.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from boxfixtures import Runner

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

SOURCE = Path(__file__).parent / "programs" / "calls.c"
DOORS = ("syscall", "x32", "int80")
REFUSED = ("-1", "-38")  # EPERM, ENOSYS
Answers = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip(
            "NOT TESTED: forbidden calls from a static program; it needs a C compiler (apt install gcc), on x86-64"
        )
    made = tmp_path_factory.mktemp("calls") / "calls"
    command = [compiler, "-static", "-nostdlib", "-O1", "-fno-stack-protector", "-o", str(made), str(SOURCE)]
    subprocess.run(command, check=True)
    return made


@pytest.fixture(scope="module")
def outside(program: Path) -> Answers:
    """What the program gets to hear as root of the host."""
    return answers(subprocess.run([program], capture_output=True, text=True, check=True).stdout)


async def inside(runner: Runner, program: Path) -> Answers:
    await runner.box.write_file("/tmp/calls", program.read_bytes(), 0o755)
    result = await runner.run("/tmp/calls", timeout=60)
    assert result.code == 0, (result.code, bytes(result.err))
    return answers(result.text)


def answers(text: str) -> Answers:
    lines = [line.split(" ", 2) for line in text.splitlines()]
    return {(door, name): said for door, name, said in lines}


def names(said: Answers) -> set[str]:
    return {name for _, name in said} - {"getpid"}


def test_the_probe_works(outside: Answers) -> None:
    """Nothing of it is refused to root: what does not go through is told that its arguments make no sense, or that
    this kernel has no such call. So a refusal in a box is the box's doing."""
    assert int(outside["syscall", "getpid"]) > 0
    assert {door for door, _ in outside} == set(DOORS)
    refused = [name for name in names(outside) if outside["syscall", name] == "-1"]
    assert refused == []
    known = [name for name in names(outside) if outside["syscall", name] != "-38"]
    assert len(known) > 30, known
    assert {outside["syscall", name] for name in ("unshare-mount", "unshare-net")} == {"0"}, "some do go through"


async def test_by_number(runner: Runner, program: Path, outside: Answers) -> None:
    said = await inside(runner, program)
    assert int(said["syscall", "getpid"]) > 0, "the program itself works in a box"
    assert names(said) == names(outside)
    assert {name: said["syscall", name] for name in names(said) if said["syscall", name] not in REFUSED} == {}


@pytest.mark.parametrize("door", ["x32", "int80"])
async def test_by_another_door(runner: Runner, program: Path, outside: Answers, door: str) -> None:
    """Not one call, and be it harmless; whoever tries is told so or killed."""
    if outside[door, "getpid"].startswith(("-", "signal")):
        print(f"NOT SHOWN TO WORK: this kernel has no {door} (getpid outside: {outside[door, 'getpid']})")
    said = await inside(runner, program)
    through = {
        name: answer
        for (through, name), answer in said.items()
        if through == door and answer not in REFUSED and not answer.startswith("signal ")
    }
    assert through == {}
    assert (await runner.run("echo alive")).text == "alive\n" and not runner.box.gone.done()
