"""agentkernel-sdk: run, exec, and the first byte of a stream."""

import os
import time

from agentkernel import AgentKernel
from drive import serve, timed


def main():
    client = AgentKernel(base_url=os.environ["BENCH_URL"], api_key=os.environ["BENCH_KEY"])
    client.create_sandbox("bench")

    def run():
        result, took = timed(lambda: client.run(["echo", "hi"]))
        assert result.output == "hi\n"
        return took

    def execute():
        result, took = timed(lambda: client.exec_in_sandbox("bench", ["echo", "hi"]))
        assert result.output == "hi\n"
        return took

    def stream():
        began = time.perf_counter()
        for event in client.run_stream(["sh", "-c", "echo hi; sleep 0.05"]):
            if event.type == "output":
                return (time.perf_counter() - began) * 1e3
        raise AssertionError("no output")

    try:
        serve({"run": run, "exec": execute, "stream": stream})
    finally:
        client.remove_sandbox("bench")


main()
