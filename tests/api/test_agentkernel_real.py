"""agentkernel's protocol on a real server that is killed in the middle."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress

from servers import Server, until


def ok(server: Server, method: str, path: str, body: object = None) -> object:
    status, answer = server.request(method, path, body)
    assert status < 300, answer
    return answer["data"]


def test_what_outlives_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server(network="none")
    ok(server, "POST", "/sandboxes", {"name": "a"})
    ok(server, "PUT", "/sandboxes/a/files/srv/f", {"content": "kept"})
    ok(server, "POST", "/sandboxes", {"name": "restrictive", "profile": "restrictive"})
    ok(server, "PUT", "/sandboxes/restrictive/files/tmp/f", {"content": "in memory"})
    ok(server, "POST", "/sandboxes", {"name": "stopped"})
    ok(server, "POST", "/sandboxes/stopped/stop")
    ok(server, "POST", "/sandboxes", {"name": "short"})
    wait = ["sh", "-c", "echo begun; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo ended"]
    made = ok(server, "POST", "/sandboxes/a/exec/detach", {"command": wait})
    url = f"/sandboxes/a/exec/detached/{made['id']}"
    until(lambda: ok(server, "GET", f"{url}/logs")["stdout"] == "begun\n")
    ok(server, "POST", "/sandboxes/short/extend", {"by": "1s"})
    server.kill9()
    server.start()
    assert ok(server, "GET", url)["status"] == "running"
    assert ok(server, "GET", "/sandboxes/a/files/srv/f")["content"] == "kept"
    assert ok(server, "GET", "/sandboxes/restrictive/files/tmp/f")["content"] == "in memory"
    assert ok(server, "GET", "/sandboxes/stopped")["status"] == "stopped"
    until(lambda: server.request("GET", "/sandboxes/short")[0] == 404)
    ok(server, "PUT", "/sandboxes/a/files/tmp/go", {"content": ""})
    until(lambda: ok(server, "GET", url)["status"] == "completed")
    assert ok(server, "GET", f"{url}/logs") == {"stdout": "begun\nended\n"}


def test_what_a_command_leaves_goes_on(make_server: Callable[..., Server]) -> None:
    """A server, say; also when Boxwood's own is killed, and when the sandbox has nothing else to do."""
    server = make_server(network="none", idle_seconds=0.05)
    ok(server, "POST", "/sandboxes", {"name": "a"})
    beat = "cd /root; mkfifo ask answer; while read x < ask; do echo $x > answer; done & echo started"
    assert ok(server, "POST", "/sandboxes/a/exec", {"command": ["sh", "-c", beat]}) == {"output": "started\n"}

    def ask(word: str) -> None:
        question = ["sh", "-c", f"cd /root; echo {word} > ask; cat answer"]
        assert ok(server, "POST", "/sandboxes/a/exec", {"command": question}) == {"output": f"{word}\n"}

    ask("one")
    server.kill9()
    server.start()
    ask("two")
    vm = ok(server, "GET", "/sandboxes/a")["uuid"]
    assert vm and server.request("DELETE", "/sandboxes/a")[0] == 200


def test_the_sandbox_of_a_run_whose_server_dies_is_not_for_ever(make_server: Callable[..., Server]) -> None:
    server = make_server(network="none")

    def run() -> None:
        with suppress(OSError):  # its server is killed
            server.request("POST", "/run", {"command": ["sleep", "600"]})

    waiting = threading.Thread(target=run)
    waiting.start()

    def leased() -> list[tuple[int]]:
        with sqlite3.connect(server.data / "boxwood.db") as database:
            found = database.execute(
                "SELECT 1 FROM vms v JOIN runs r ON r.vm_id = v.id WHERE expires_at > 0"
            ).fetchall()
        database.close()
        return found

    until(leased)
    server.kill9()
    waiting.join()
    assert leased(), "it was not given up in good order"
    with sqlite3.connect(server.data / "boxwood.db") as database:
        database.execute("UPDATE vms SET expires_at = 1 WHERE expires_at > 0")  # its two minutes are over
    database.close()
    server.start()
    until(lambda: not server.request("GET", "/v1/vms")[1]["vms"])


def test_the_restrictive_profile_holds(boxwood_server: Server) -> None:
    server = boxwood_server
    ok(server, "POST", "/sandboxes", {"name": "r", "profile": "restrictive"})
    try:
        script = "echo x > /x; echo x > /tmp/x && cat /tmp/x; cp /bin/true /tmp/t; /tmp/t; ls /sys/class/net; nproc"
        status, said = server.request("POST", "/sandboxes/r/exec", {"command": ["sh", "-c", script]})
        assert status == 200, said
        assert "Read-only file system" in said["data"]["output"] and "Permission denied" in said["data"]["output"]
        status, said = server.request("PUT", "/sandboxes/r/files/srv/f", {"content": "x"})
        assert status == 400 and "read-only" in said["error"], said
        ok(server, "PUT", "/sandboxes/r/files/tmp/f", {"content": "kept"})
        assert ok(server, "GET", "/sandboxes/r/files/tmp/f")["content"] == "kept"
        status, said = server.request(
            "POST", "/sandboxes/r/exec", {"command": ["python3", "-c", "x = bytearray(400 << 20)"]}
        )
        assert (status, said["exit_code"]) == (409, 137), said
        with server.client() as client:
            child = client.vm("r").fork()
            assert child.run("echo x > /etc/x").exit_code != 0
            assert child.run("cat /tmp/f").exit_code != 0, "what is in memory is not forked"
            child.delete()
    finally:
        ok(server, "DELETE", "/sandboxes/r")
    status, said = server.request("POST", "/run", {"command": ["touch", "/x"], "profile": "restrictive"})
    assert status == 409 and "Read-only file system" in said["error"], said
    assert ok(server, "POST", "/run", {"command": ["pwd"], "profile": "restrictive"})["output"].startswith("/")


def test_a_program_that_is_not_there(boxwood_server: Server) -> None:
    server = boxwood_server
    status, said = server.request("POST", "/run", {"command": ["no such program", "x"]})
    assert (status, said["exit_code"]) == (409, 127)
    assert said["error"] == "Command exited with code 127: no such program: No such file or directory\n"
    status, said = server.request("POST", "/run", {"command": ["/etc"]})
    assert (status, said["exit_code"], said["output"]) == (409, 126, "/etc: Permission denied\n")
