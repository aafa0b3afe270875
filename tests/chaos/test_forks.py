"""Forks under load: a long chain, a fork of a VM that never stops writing, many at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from amounts import amount
from boxwood import VM
from servers import Server, until

DEPTH, MERGED_ABOVE = amount((16, 6), (150, 48))  # some merges; bench/ measures 300
MANY = amount(12, 48)


@pytest.mark.slow
def test_a_long_chain_reads_right_at_every_depth(make_server: Callable[..., Server]) -> None:
    """Each VM is a fork of the one before and writes, overwrites and deletes; stacks are merged behind its back."""
    server = make_server(layers_merged_above=MERGED_ABOVE)
    with server.client() as box:
        made = [box.fork("ubuntu")]
        try:
            made[0].run("mkdir /root/c; echo 0 > /root/c/last", check=True)
            for depth in range(1, DEPTH):
                vm = made[-1].fork()
                made.append(vm)
                vm.run(f"cd /root/c; echo {depth} > last; echo {depth} > {depth}; rm -f ./{depth - 2}", check=True)
            turns = {1, 2, *(n * MERGED_ABOVE + d for n in (1, 2, 3) for d in (-1, 0, 1)), DEPTH - 1}
            for depth in sorted(depth for depth in turns if depth < DEPTH):
                seen = made[depth].run("cat /root/c/last; ls /root/c").stdout.split()
                kept = [str(n) for n in (depth - 1, depth) if n > 0]
                assert seen == [str(depth), *sorted([*kept, "last"])], depth
            middle = made[MERGED_ABOVE + 2].fork()
            made.append(middle)
            assert middle.run("cat /root/c/last").stdout == f"{MERGED_ABOVE + 2}\n"
        finally:
            for vm in made:
                vm.delete()


def test_a_fork_of_a_vm_that_writes_harms_neither(boxwood_server: Server) -> None:
    loop = "n=0; while [ ! -e /root/stop ]; do n=$((n+1)); echo $n > /root/n.new; mv /root/n.new /root/n; done; echo $n"
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        vm.write_file("/root/before", "before\n")
        writer = vm.run(loop, background=True, session=1)
        until(lambda: vm.run("cat /root/n 2>/dev/null").stdout)
        children = [vm.fork() for _ in range(amount(3, 4))]
        last = 0
        for child in children:
            assert child.record.copied is not None and child.record.copied.frozen_ms > 0
            seen = int(child.run("cat /root/n").stdout)
            assert seen >= last  # each later child is of a later moment
            assert child.run("cat /root/n /root/before").stdout == f"{seen}\nbefore\n"  # nothing writes in the child
            last = seen
        vm.write_file("/root/stop", b"")
        assert int(writer.wait(60).stdout) >= last
        for child in children:
            child.delete()


def test_many_forks_of_one_vm_at_once(boxwood_server: Server) -> None:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        vm.run("export WORD=kept; cd /srv; echo shared > f", check=True)

        def live(number: int) -> tuple[VM, str]:
            child = vm.fork()
            return child, child.run(f'echo {number} > own; echo "$WORD $PWD $(cat f own | tr "\\n" " ")"').stdout

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(live, range(MANY)))
        assert [text for _, text in answers] == [f"kept /srv shared {number} \n" for number in range(MANY)]
        assert vm.run("ls").stdout == "f\n"
        for child, _ in answers:
            child.delete()
