"""The protocol of ARL's gateway on a real server: what survives a server that is killed, and boxes with processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from amounts import amount
from servers import Server, until


def ok(server: Server, method: str, path: str, body: object = None) -> Any:
    status, answer = server.request(method, f"/arl{path}", body)
    assert status < 300, (status, answer)
    return answer


def execute(server: Server, session: str, script: str, **more: object) -> dict[str, Any]:
    steps = [{"name": "a", "command": ["sh", "-c", script]}]
    (result,) = ok(server, "POST", f"{session}/execute", {"steps": steps, **more})["results"]
    return dict(result)


def said(server: Server, session: str, script: str) -> str:
    result = execute(server, session, script)
    assert result["output"]["exit_code"] == 0, result
    return str(result["output"]["stdout"])


def test_what_outlives_a_server_that_is_killed(make_server: Callable[..., Server]) -> None:
    server = make_server(network="none")
    session = f"/v1/sessions/{ok(server, 'POST', '/v1/sessions', {'image': 'ubuntu'})['id']}"
    execute(server, session, "echo 0 > f")
    execute(server, session, "echo 1 > f", operationID="done")
    history = ok(server, "GET", f"{session}/history")

    def lost() -> None:
        with suppress(OSError):  # its server is killed
            execute(server, session, "echo x >> counted; sleep 600", operationID="lost")

    waiting = threading.Thread(target=lost)
    waiting.start()
    until(lambda: said(server, session, "cat counted 2>/dev/null || true") == "x\n")
    server.kill9()
    waiting.join()
    server.start()
    shown = ok(server, "GET", f"{session}/operations/lost")
    assert shown["status"] == "error" and "the server was restarted" in shown["error"]
    assert ok(server, "GET", f"{session}/operations/done")["result"]["results"] == [history[1]]
    assert said(server, session, "cat counted") == "x\n"
    assert ok(server, "GET", f"{session}/history")[:2] == history
    ok(server, "POST", f"{session}/restore", {"snapshotID": "0"})
    assert said(server, session, "cat f; ls counted 2>/dev/null || echo none") == "0\nnone\n"
    assert ok(server, "GET", session)["status"] == "active"


def test_what_runs_in_a_session_goes_on_while_its_steps_are_kept(boxwood_server: Server) -> None:
    server = boxwood_server
    session = f"/v1/sessions/{ok(server, 'POST', '/v1/sessions', {'image': 'ubuntu'})['id']}"
    results: list[dict[str, Any]] = []
    script = "touch begun; while [ ! -e stop ]; do sleep 0.05; done; cat f"
    running = threading.Thread(target=lambda: results.append(execute(server, session, script)))
    running.start()
    until(lambda: said(server, session, "ls").startswith("begun"))
    for at in range(3):
        last = execute(server, session, f"echo {at} > f")["index"]
    execute(server, session, "touch stop")
    running.join()
    assert results[0]["output"]["stdout"] == "2\n"
    ok(server, "POST", f"{session}/restore", {"snapshotID": str(last - 1)})
    assert said(server, session, "cat f; ls") == "1\nbegun\nf\n"
    ok(server, "DELETE", session)


def test_a_long_session(make_server: Callable[..., Server]) -> None:
    """More layers than are stacked: they are merged while it goes on."""
    server = make_server(network="none", layers_merged_above=8)
    session = f"/v1/sessions/{ok(server, 'POST', '/v1/sessions', {'image': 'ubuntu'})['id']}"
    for at in range(steps := amount(16, 40)):
        execute(server, session, f"echo {at} > f{at}; rm -f f{at - 3}")
    for at in (steps - 4, 6):
        ok(server, "POST", f"{session}/restore", {"snapshotID": str(at)})
        names = "\n".join(sorted(f"f{one}" for one in range(at - 2, at + 1)))
        assert said(server, session, "ls | sort") == f"{names}\n"
    ok(server, "DELETE", session)
    until(lambda: not server.request("GET", "/v1/vms")[1]["vms"])
