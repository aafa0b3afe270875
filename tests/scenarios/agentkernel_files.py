"""agentkernel: files of a sandbox."""

import base64

from observing import Scenario, fresh, refusal

scenario = Scenario()
step = scenario.step
RAW = bytes(range(256)) * 1000


def in_sandbox(ak, body):
    with ak.AgentKernel() as client, client.sandbox(fresh("ak")) as box:
        return body(client, box.name)


@step(["Wrote 8 bytes to /tmp/a/f.txt", "FileReadResponse", "grüße\n", "utf8", 8, "grüße\n"])
def text(ak):
    def body(client, name):
        said = client.write_file(name, "/tmp/a/f.txt", "grüße\n")
        found = client.read_file(name, "/tmp/a/f.txt")
        seen = client.exec_in_sandbox(name, ["cat", "/tmp/a/f.txt"]).output
        return [said, type(found).__name__, found.content, found.encoding, found.size, seen]

    return in_sandbox(ak, body)


@step([True, "base64", 256_000, "256000 /root/raw\n"])
def bytes_of_any_kind(ak):
    def body(client, name):
        client.write_file(name, "/root/raw", base64.b64encode(RAW).decode(), encoding="base64")
        found = client.read_file(name, "/root/raw")
        counted = client.exec_in_sandbox(name, ["wc", "-c", "/root/raw"]).output
        return [base64.b64decode(found.content) == RAW, found.encoding, found.size, counted]

    return in_sandbox(ak, body)


@step(["1", "1"])
def a_path_without_its_slash(ak):
    def body(client, name):
        client.write_file(name, "srv/one", "1")
        return [client.read_file(name, "srv/one").content, client.read_file(name, "/srv/one").content]

    return in_sandbox(ak, body)


@step(["Deleted /tmp/f", "Deleted /tmp/f", ["NotFoundError", 404]])
def delete(ak):
    def body(client, name):
        client.write_file(name, "/tmp/f", "x")
        first, again = (client.delete_file(name, "/tmp/f") for _ in range(2))
        return [first, again, refusal(lambda: client.read_file(name, "/tmp/f"), "status")]

    return in_sandbox(ak, body)


@step(["ValidationError", 400])
def what_is_no_base64(ak):
    return in_sandbox(
        ak, lambda box, name: refusal(lambda: box.write_file(name, "/f", "*", encoding="base64"), "status")
    )


@step(["NotFoundError", 404])
def a_directory_is_no_file(ak):
    return in_sandbox(ak, lambda client, name: refusal(lambda: client.read_file(name, "/tmp"), "status"))


@step("ValidationError")
def what_the_protocol_protects(ak):
    def body(client, name):
        try:
            return type(client.read_file(name, "/etc/shadow")).__name__
        except ak.AgentKernelError as error:
            return type(error).__name__

    return in_sandbox(ak, body)


DIFFERENCES = {
    ("face", "a_directory_is_no_file"): (
        ["ValidationError", 400],
        "our contract tells a path that is no file from one that is not there; agentkernel's protocol does not",
    ),
    ("face", "what_the_protocol_protects"): (
        "FileReadResponse",
        "agentkernel's protocol hides some files of a sandbox from its own user; our contract does not",
    ),
}

if __name__ == "__main__":
    scenario.play()
