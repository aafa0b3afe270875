"""Python contexts while the server is killed, and while a box is: variables are kept over the one, and said to be lost after
the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from boxwood import PythonResult, RunOutput
from chaos.test_streams import Listener
from servers import Server, until

Make = Callable[..., Server]


def test_variables_outlive_the_server(server: Server) -> None:
    """Killed between runs, and in the middle of one that is followed: nothing is lost, nothing comes twice."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        ctx = vm.python()
        ctx.run("x = 41")
        server.kill9()
        server.start()
        done = ctx.run("x + 1")
        assert done.result is not None and done.result.text == "42"
        assert done.context is not None and not done.context.new and done.context.number == 2
        code = (
            "import os, time\nos.mkfifo('/root/go')\ndisplay('before')\ndisplay('y' * 100_000)\nprint('here')\n"
            "open('/root/go').read()\ndisplay('after')\nx"
        )
        listener = Listener(ctx.run_stream(code))
        until(lambda: listener.heard() == b"here\n")
        server.kill9()
        server.start()
        vm.run("echo > /root/go", env={})
        assert listener.rest().exit_code == 0
        told = [event.text for event in listener.events if isinstance(event, PythonResult)]
        assert told == ["'before'", f"'{'y' * 100_000}'", "'after'", "41"]
        run = vm.get_run(listener.events[0].run_id)
        assert [result.text for result in run.results] == told
        vm.delete()


def test_a_context_that_went_with_its_box_is_said_to_be_lost(make_server: Make) -> None:
    """It keeps its box from being parked; when that dies all the same, the next run says so."""
    server = make_server(idle_seconds=0.2, network="internet")
    with server.client() as box:
        vm = box.fork("ubuntu")
        ctx = vm.python()
        ctx.run("import os\nos.chdir('/tmp')\nx = 1")
        other = box.fork("ubuntu")
        other.run("true")
        boxes = set(server.boxes())
        until(lambda: other.refresh().address is None)  # parked: what is idle is, within that time
        kept = ctx.run("x")
        assert kept.result is not None and kept.result.text == "1" and boxes & set(server.boxes())
        events = ctx.run_stream("print('here', flush=True)\nimport time\ntime.sleep(1000)")
        for event in events:
            if isinstance(event, RunOutput):
                server.kill9()
                os.kill(server.zygote_pid, signal.SIGKILL)
                server.start()
        lost = ctx.run("'x' in globals(), os.getcwd() if 'os' in globals() else __import__('os').getcwd()")
        assert lost.result is not None and lost.result.text == "(False, '/tmp')"
        assert lost.context is not None and lost.context.new and lost.context.lost
        vm.delete()
        other.delete()
