"""`make fuzz`: each target for a while, in a process of its own, guided by what the parser's code does with an input.

    make fuzz ARGS="--seconds 300 --seed 7 agent archive"

An input that is a finding is kept in .cache/fuzz/found; put it into tests/fuzz/corpus/TARGET with the mending, and every
run of the tests goes through it. What leads to new places in the code is kept in .cache/fuzz/TARGET for the next time.
Guided is it by atheris, where that can be had (x86-64, Python up to 3.13); elsewhere changes are made blindly, which the
first line says.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).parents[2]
sys.path[0] = str(HOME / "tests")

from fuzz.target import NAMES, Target, load, mutated  # noqa: E402

KEPT = HOME / ".cache/fuzz"
FOUND = KEPT / "found"
LONGEST = 1 << 16  # bytes of an input
SLOWEST = 20  # seconds for one
MEMORY_MIB = 1500
PARSERS = ["boxwood", "tarfile", "dns", "asyncio.streams"]
GUIDED = importlib.util.find_spec("atheris") is not None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz the parsers that read what guests write.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--seed", type=int, default=None, help="that of an earlier run, to have it again")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(NAMES):
        parser.error(f"no target: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(1, 1 << 31)
    if asked.one:
        return work(asked.targets[0], seed, asked.seconds)
    how = "guided by atheris" if GUIDED else "blindly: there is no atheris for this Python or machine"
    print(f"fuzz: seed {seed}, {asked.seconds} s a target, {how}", flush=True)
    FOUND.mkdir(parents=True, exist_ok=True)
    failed = [name for name in asked.targets or NAMES if not one(name, seed, asked.seconds)]
    for name in failed:
        print(f"fuzz: {name}: FOUND something; the input is in {FOUND}/{name}-*")
    return bool(failed)


def one(name: str, seed: int, seconds: int) -> bool:
    """Whether nothing was found."""
    print(f"fuzz: {name} …", flush=True)
    command = [sys.executable, __file__, "--one", f"--seconds={seconds}", f"--seed={seed}", name]
    return subprocess.run(command, cwd=HOME, check=False).returncode == 0


def work(name: str, seed: int, seconds: int) -> int:
    return guided(name, seed, seconds) if GUIDED else blind(name, seed, seconds)


def guided(name: str, seed: int, seconds: int) -> int:
    import atheris

    with atheris.instrument_imports(include=PARSERS):
        target = load(name)
    seeds, kept = KEPT / "seeds" / name, KEPT / name
    for directory in (seeds, kept):
        directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (seeds / str(number)).write_bytes(data)
    words = KEPT / "seeds" / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    arguments = [
        f"-seed={seed}", f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEMORY_MIB}",
        f"-dict={words}", f"-artifact_prefix={FOUND}/{name}-", "-print_final_stats=1", "-verbosity=0", "-len_control=20",
        str(kept), str(seeds),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()  # ends the process
    return 0


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def blind(name: str, seed: int, seconds: int) -> int:
    target, noise, end = load(name), random.Random(seed), time.monotonic() + seconds
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MIB << 20, MEMORY_MIB << 20))
    for data in target.seeds:
        attempt(target, data)
    tried = len(target.seeds)
    while time.monotonic() < end:
        attempt(target, mutated(target, noise))
        tried += 1
    print(f"fuzz: {name}: {tried} inputs")
    return 0


def attempt(target: Target, data: bytes) -> None:
    """An input is kept before it is tried: whatever it does, also to this process, it is there afterwards."""
    place = FOUND / f"{target.name}-{os.getpid()}"
    place.write_bytes(data)
    signal.alarm(SLOWEST)
    target.run(data)
    signal.alarm(0)
    place.unlink()


if __name__ == "__main__":
    sys.exit(main())
