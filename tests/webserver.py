"""Servers for tests, run in a network namespace: TLS on 8443, plain on 8081. They answer with what they were told, and tell
all they have seen when they are asked on standard input. Argument: a directory with the authority of their certificate."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from boxwood.engine.proxy import http1, http2
from boxwood.engine.proxy.authority import Mint
from boxwood.engine.proxy.channel import Plain, Secure
from boxwood.engine.proxy.message import Reply

NAME = "public.test"
seen: list[dict[str, Any]] = []


async def _serve(mint: Mint | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    plain = Plain(reader, writer)
    channel: Plain | Secure = plain

    async def handle(stream: Any) -> None:
        body = b""
        while piece := await stream.read():
            body += piece
        head = stream.head
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        seen.append({"method": head.method, "target": head.target, "headers": headers, "tls": mint is not None})
        said = json.dumps({**seen[-1], "body": body.decode("latin-1")}).encode()
        await stream.respond(Reply(200, [(b"content-type", b"application/json")], len(said)))
        await stream.send(said)
        await stream.end([])

    try:
        if mint is not None:
            channel = Secure(plain, mint.context(NAME, http2=True))
            await channel.handshake()
        if isinstance(channel, Secure) and channel.protocol == "h2":
            await http2.serve(channel, handle, secure=True)
        else:
            await http1.serve(channel, handle)
    except (OSError, ssl.SSLError):
        pass
    finally:
        plain.abort()


async def main(directory: Path) -> None:
    mint = Mint((directory / "ca.crt").read_bytes(), (directory / "ca.key").read_bytes())
    await asyncio.start_server(lambda r, w: _serve(mint, r, w), "93.184.215.14", 8443)
    await asyncio.start_server(lambda r, w: _serve(None, r, w), "93.184.215.14", 8081)
    print("ready", flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(seen), flush=True)
        seen.clear()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
