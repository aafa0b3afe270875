"""arl-env 0.1: a sandbox from a warm pool, and a step in one, through the Kubernetes API."""

import contextlib
import io
import itertools

from arl import SandboxSession, WarmPoolManager
from drive import serve, timed

POOL = "bench-crd"
STEP = [{"name": "hi", "type": "Command", "command": ["echo", "hi"]}]
numbers = itertools.count()


def quiet(step):
    """The client says on standard output what it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        return step()


def create():
    session = SandboxSession(pool_ref=POOL, keep_alive=True)
    session.sandbox_name = None
    try:
        _, took = quiet(lambda: timed(session.create_sandbox))
        return took
    finally:
        quiet(session.delete_sandbox)


def main():
    manager = WarmPoolManager()
    quiet(lambda: manager.create_warmpool(POOL, "python:3.12-slim", "none", replicas=8))
    quiet(lambda: manager.wait_for_warmpool_ready(POOL, poll_interval=0.1))
    session = SandboxSession(pool_ref=POOL, keep_alive=True)
    quiet(session.create_sandbox)

    def execute():
        result, took = quiet(lambda: timed(lambda: session.execute(STEP)))
        assert result["status"]["stdout"] == "hi\n", result
        return took

    try:
        serve({"create": create, "execute": execute})
    finally:
        quiet(session.delete_sandbox)
        quiet(lambda: manager.delete_warmpool(POOL))


main()
