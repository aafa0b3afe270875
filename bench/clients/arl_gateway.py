"""arl-env 0.27: a session from a warm pool, and a step in one, through the gateway."""

import os

from arl import SandboxSession, WarmPoolManager
from drive import serve, timed

POOL, IMAGE, PROFILE = "bench-gateway", "python:3.12-slim", "bench"
STEP = [{"name": "hi", "command": ["echo", "hi"]}]


def main():
    given = {"gateway_url": os.environ["BENCH_GATEWAY"], "api_key": os.environ["BENCH_KEY"]}
    manager = WarmPoolManager(**given)
    manager.create_warmpool(POOL, IMAGE, replicas=8, profile=PROFILE)
    manager.wait_for_ready(POOL, poll_interval=0.1, min_ready=8)
    session = SandboxSession(IMAGE, profile=PROFILE, **given)
    session.create_sandbox()

    def create():
        other = SandboxSession(IMAGE, profile=PROFILE, **given)
        try:
            return timed(other.create_sandbox)[1]
        finally:
            other.delete_sandbox()
            other.close()

    def execute():
        result, took = timed(lambda: session.execute(STEP))
        assert result.results[0].output.stdout == "hi\n", result
        return took

    try:
        serve({"create": create, "execute": execute})
    finally:
        session.delete_sandbox()
        session.close()
        manager.destroy_warmpool(POOL)
        manager.close()


main()
