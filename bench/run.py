"""Measures Boxwood beside bubblewrap, runc and Docker in one run, and says which aims are met.

    bench/run.py [--quick] [--only SECTION ...] [--no-docs]

Sections: one, docker, clients, pools, network, streams, terminals, python, files, inbound, policy, growth, floor,
isolation, rootless, many, rates, memory. Writes bench/results/latest.json and the tables of README.md and
docs/benchmarks.md (a full run; one with `--only` writes a part of the page alone). Exit code 1: an aim was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import docker
import files
import inbound
import inside
import isolation
import machine
import memory
import network
import noroot
import ours
import peers
import policy
import published
import rates
import report as reports
import streams
import terminals
from boxwood import VM, Boxwood
from measure import dump, rounds, timed
from report import HOME, Aim, Report
from server import Server
from states import states

CACHE = HOME / ".cache/bench"
SECTIONS = (
    "one", "docker", "clients", "pools", "network", "streams", "terminals", "python", "files", "inbound", "policy",
    "growth", "floor", "isolation",
    "rootless", "many", "rates",  # late: hosts of virtual machines take back what is asked of them for long
    "memory",
)  # fmt: skip
STOLEN = 0.03  # of the time, from which on a remark says so


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("bench: needs root: it measures Boxwood with and without", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is taken down all the same
    wanted = options.only or SECTIONS
    scratch = Path(tempfile.mkdtemp(prefix="boxwood-bench-"))
    server = Server(scratch / "data")
    try:
        report = Report(machine.describe(scratch), datetime.now(UTC).strftime("%Y-%m-%d"))
        if reason := machine.quiet():
            report.remarks.append(f"the machine was not quiet when this began: {reason}")
        server.start(idle_seconds=memory.IDLE)
        for section in SECTIONS:
            if section in wanted:
                print(f"bench: {section}", file=sys.stderr, flush=True)
                machine.forget_deleted()
                busy, stolen = machine.time_taken()
                MEASURES[section](report, server, scratch, options.quick)
                now = machine.time_taken()
                if (share := (now[1] - stolen) / max(1, now[0] - busy)) > STOLEN:
                    report.remarks.append(f"{section}: the host gave {share:.0%} of the processors' time to others")
    finally:
        server.down()
        shutil.rmtree(scratch, ignore_errors=True)
    return _tell(report, told=not options.quick and not options.no_docs, whole=not options.only)


def one(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    steps: dict[str, Callable[[], float]] = {"posix_spawn: /bin/true": peers.spawn()}
    for name, make in (("bwrap: start + true", peers.bwrap), ("runc: run true", lambda: peers.runc(scratch))):
        try:
            steps[name] = make()
        except peers.Unavailable as error:
            report.remarks.append(f"{name}: {error}")
    with server.client() as box, _shell(box) as vm:
        report.add(reports.SINGLE, rounds(4 if quick else 30, steps | ours.steps(box, vm)).values())
    bwrap = report.find(reports.SINGLE, "bwrap: start + true")
    for name, bar in (("fork + first command", 1.5), ("run of a builtin", 0.35), ("run of /bin/true", 0.5)):
        report.ratio(f"{name}, in starts of bwrap", report.find(reports.SINGLE, name), bwrap, bar)


def contexts(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with server.client() as box, _shell(box) as vm, vm.python() as context:
        context.run("1")
        report.add(reports.PYTHON, rounds(4 if quick else 30, ours.python(context)).values())


def beside_docker(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    try:
        with docker.daemon(scratch / "docker", CACHE, peers.busybox_tar(scratch)) as daemon:
            container = daemon.create()
            with server.client() as box, _shell(box) as vm:
                mine = ours.steps(box, vm)
                steps = {
                    "Docker: create + first exec": daemon.first,
                    "Docker: exec": lambda: timed(lambda: daemon.run(container, ["true"])),
                    "fork + first /bin/true": mine["fork + first /bin/true"],
                    "run of /bin/true": mine["run of /bin/true"],
                    "exec of /bin/true": mine["exec of /bin/true"],
                }
                report.add(reports.DOCKER, rounds(2 if quick else 10, steps, burst=3).values())
            report.machine["docker"] = daemon.version
    except peers.Unavailable as error:
        report.remarks.append(f"Docker: {error}")
    for theirs, name, bar in (("create + first exec", "fork + first /bin/true", 25), ("exec", "exec of /bin/true", 20)):
        over, under = report.find(reports.DOCKER, f"Docker: {theirs}"), report.find(reports.DOCKER, name)
        report.ratio(f"Docker's {theirs}, in Boxwood's {name}", over, under, bar, at_least=True)


def clients(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    """In the same rounds as Docker, where there is Docker."""
    n = 2 if quick else 10
    with contextlib.ExitStack() as stack:
        try:
            steps = dict(stack.enter_context(published.steps(server, CACHE, scratch)))
        except peers.Unavailable as error:
            report.remarks.append(f"published clients: {error}")
            return
        try:
            daemon = stack.enter_context(docker.daemon(scratch / "docker", CACHE, peers.busybox_tar(scratch)))
            container = daemon.create()
            steps["Docker: create + first exec"] = daemon.first
            steps["Docker: exec"] = lambda: timed(lambda: daemon.run(container, ["true"]))
        except peers.Unavailable as error:
            report.remarks.append(f"Docker beside published clients: {error}")
        found = rounds(n, steps, burst=3)
    report.add(reports.CLIENTS, map(published.noted, found.values()))


def pools(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with server.client() as box:
        report.add(reports.POOLS, ours.claims(box, 3 if quick else 20))


def outside(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    """With Docker's bridge where there is Docker; what a network adds to a fork."""
    n = 1 if quick else 5
    with network.outside() as name, server.client() as box:
        try:
            with docker.daemon(scratch / "docker-net", CACHE, peers.busybox_tar(scratch)) as daemon:
                measured = network.measure(box, daemon, name, n)
        except peers.Unavailable as error:
            report.remarks.append(f"Docker's network: {error}")
            measured = network.measure(box, None, name, n)
        for series in measured:
            report.add(reports.NETWORK, series)
        report.add(reports.NETWORK, rounds(4 if quick else 20, ours.networks(box)).values())
    with_, without = (report.find(reports.NETWORK, text) for text in ours.NETWORKS)
    if with_ is not None and without is not None:
        report.aims.append(Aim("what the network adds to a fork + first command", with_.p50 - without.p50, 3, " ms"))


def without_root(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    try:
        with noroot.server() as other, server.client() as box, other.client() as theirs:
            with _shell(box) as vm, _shell(theirs) as another:
                measured = rounds(4 if quick else 20, noroot.steps(box, vm, theirs, another))
    except peers.Unavailable as error:
        report.remarks.append(f"without root: {error}")
        return
    report.add(reports.ROOTLESS, measured.values())


def layers(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    made, behind = isolation.measure(scratch, 5 if quick else 40)
    report.add(reports.ISOLATION, made)
    report.add(reports.ISOLATED, behind)


def many(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    for command in (":", "/bin/true"):
        report.add(reports.MANY, rates.many(server.client, command, 10 if quick else 60))


def beside_exec(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    each = 2 if quick else 10
    try:
        with docker.daemon(scratch / "docker-rates", CACHE, peers.busybox_tar(scratch)) as daemon:
            found = rates.measure(server.client, daemon, each)
    except peers.Unavailable as error:
        report.remarks.append(f"Docker beside many clients: {error}")
        found = rates.measure(server.client, None, each)
    report.add(reports.RATES, found)


def typed(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with server.client() as box:
        report.add(reports.TERMINALS, terminals.series(box, 1 if quick else 5))


def followed(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with server.client() as box:
        found = streams.series(box, 2 if quick else 20)
    report.add(reports.STREAMS, found)
    report.aims.append(Aim(streams.FIRST, found[0].p50, 2, " ms"))


def moved(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    mib = 128 if quick else 1024
    with contextlib.ExitStack() as stack:
        peer = None
        try:
            daemon = stack.enter_context(docker.daemon(scratch / "docker", CACHE, peers.busybox_tar(scratch)))
            peer = daemon, daemon.create()
        except peers.Unavailable as error:
            report.remarks.append(f"Docker beside files: {error}")
        box = stack.enter_context(server.client())
        vm = stack.enter_context(_shell(box))
        report.add(reports.FILES, files.small(vm, scratch, 3 if quick else 20, peer))
        report.add(reports.FILES, files.large(server, vm, scratch, mib, 1 if quick else 3, peer))
        report.add(reports.FILES, files.trees(vm, scratch, 1 if quick else 3))
    written = report.find(reports.FILES, files.WRITE)
    report.aims.append(Aim(files.WRITE, written.p50 if written else float("inf"), 1.5, " ms"))
    for name, bar in ((files.UP, 400), (files.DOWN, 500)):
        rate = report.find(reports.FILES, f"{name}: {mib} MiB")
        report.aims.append(Aim(name, rate.p50 if rate else 0.0, bar, " MiB/s", at_least=True))
    grown = report.find(reports.FILES, files.GROWN)
    report.aims.append(Aim(files.GROWN, grown.p50 if grown else float("inf"), 32, " MiB"))


def growth(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with server.client() as box:
        sizes = ours.size(box, 2 if quick else 8)
        links = ours.chain(box, 60 if quick else 300, 3 if quick else 15)
        report.add(
            reports.GROWTH, [*sizes, *links, *ours.busy(box, 3 if quick else 15), *states(box, 2 if quick else 8)]
        )
    first_large, first_small, large, small = sizes
    report.ratio(
        "first fork of a VM with 1 GiB in 20,000 files, in forks of a small one", first_large, first_small, 1.5
    )
    report.ratio("later forks of the same, in forks of a small one", large, small, 1.5)
    report.ratio(
        f"the last fork + first command of a chain of {60 if quick else 300}, in the first", links[1], links[0], 2
    )


def used(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    series, processes = memory.measure(server, 1 if quick else 3)
    report.add(reports.MEMORY, series)
    report.aims.append(Aim("memory per live box, its idle shell included", series[0].p50, 4, " MiB"))
    report.aims.append(Aim(reports.PARKED, processes, 0))


def floor(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    report.add(reports.FLOOR, inside.measure(scratch, 4 if quick else 20))


def ports(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with server.client() as box:
        n, mib = (4, 64) if quick else (50, 512)
        report.add(reports.INBOUND, inbound.series(box, server.url, server.key, n, mib))


def requests(report: Report, server: Server, scratch: Path, quick: bool) -> None:
    with network.outside() as name, server.client() as box:
        n, count, mib = (1, 20, 16) if quick else (10, 50, 256)
        report.add(reports.POLICY, policy.series(box, name, n, count, mib))


MEASURES: dict[str, Callable[[Report, Server, Path, bool], None]] = {
    "one": one,
    "docker": beside_docker,
    "clients": clients,
    "pools": pools,
    "network": outside,
    "rootless": without_root,
    "isolation": layers,
    "many": many,
    "rates": beside_exec,
    "streams": followed,
    "terminals": typed,
    "python": contexts,
    "files": moved,
    "inbound": ports,
    "policy": requests,
    "growth": growth,
    "memory": used,
    "floor": floor,
}


def _shell(box: Boxwood) -> VM:
    """A VM with a live shell; deleted when left."""
    vm = box.fork("ubuntu")
    vm.run(":", check=True)
    return vm


def _tell(report: Report, *, told: bool, whole: bool) -> int:
    """`whole`: of all sections; of some alone the tables stand in a place of their own."""
    print(reports.terminal(report))
    if told and whole:
        results = HOME / "bench/results"
        results.mkdir(exist_ok=True)
        (results / "latest.json").write_text(dump(report.as_json()))
        reports.insert(HOME / "README.md", reports.brief(report))
        reports.insert(HOME / "docs/benchmarks.md", reports.full(report))
        reports.insert(HOME / "docs/benchmarks.md", "Nothing.", reports.PART_BEGIN, reports.PART_END)
    elif told:
        reports.insert(HOME / "docs/benchmarks.md", reports.full(report), reports.PART_BEGIN, reports.PART_END)
    return 0 if report.met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works, not to compare")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--no-docs", action="store_true", help="leave README.md and docs/benchmarks.md as they are")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
