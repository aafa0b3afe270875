"""What the server tells the proxy: the authority, and what holds for which VM. The one way in which secrets come here.

Lines of JSON over a Unix socket in the data directory, which is root's alone; each is answered when it holds:

    → {"n": 1, "authority": {"certificate": PEM, "key": PEM}, "roots": PEM}   roots: believed beside the host's own
    → {"n": 2, "vm": "01J…", "policies": {"name": rule, …}, "secrets": {"KEY": "…"}}
    → {"n": 3, "vm": "01J…", "policies": null}           it needs no proxy any more: what is open ends
    → {"n": 4, "gate": {"url": "https://gate.example", …}}    to be asked about what comes in (questions.py)
    ← {"n": 1}, or {"n": 2, "error": "what is wrong with it"}
    ← {"n": 4, "refusal": "its gate said 403"}           when it has said so; empty: it lets through
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from boxwood.engine.policies import Malformed, parse
from boxwood.engine.proxy import gates
from boxwood.engine.proxy.authority import Mint
from boxwood.engine.proxy.guests import Guests
from boxwood.engine.proxy.origins import Origins
from boxwood.engine.proxy.questions import Question
from boxwood.engine.proxy.standing import Standings

LINE = 4 << 20


class Control:
    def __init__(self, standings: Standings, guests: Guests, origins: Origins) -> None:
        self._standings = standings
        self._guests = guests
        self._origins = origins
        self._client: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._client is not None:
            self._client.close()  # one server at a time: the newest
        self._client = writer
        asking = set[asyncio.Task[None]]()
        try:
            while (line := await reader.readline()) and self._client is writer:  # else it may be older than what holds
                said = json.loads(line)
                if "gate" in said:  # which may take its time: nobody else waits for it
                    task = asyncio.get_running_loop().create_task(self._ask(said, writer))
                    asking.add(task)
                    task.add_done_callback(asking.discard)
                else:
                    _answer(writer, self._hear(said))
                    await writer.drain()
        except (OSError, ValueError):
            pass  # its server is gone, or is none
        finally:
            if self._client is writer:
                self._client = None
            for task in asking:
                task.cancel()
            with contextlib.suppress(OSError):
                writer.close()

    async def _ask(self, said: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            refusal = await gates.passes(Question.from_json(said["gate"]), self._origins, self._guests.trust)
        except (ValueError, KeyError, TypeError, MemoryError) as error:
            _answer(writer, {"n": said.get("n"), "error": f"it was not understood: {type(error).__name__}"})
        else:
            _answer(writer, {"n": said.get("n"), "refusal": refusal})

    def _hear(self, said: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"n": said.get("n")}
        try:
            self._do(said)
        except Malformed as error:
            answer["error"] = str(error)
        except (ValueError, KeyError, TypeError, OSError, MemoryError) as error:  # whose texts may hold what was said
            answer["error"] = f"it was not understood: {type(error).__name__}"
        return answer

    def _do(self, said: dict[str, Any]) -> None:
        if "authority" in said:
            pair = said["authority"]
            self._guests.mint = Mint(pair["certificate"].encode(), pair["key"].encode())
            if roots := said.get("roots"):
                self._guests.trust.add(roots)
        elif said["policies"] is None:
            self._standings.drop(said["vm"])
        else:
            self._standings.put(said["vm"], parse(said["policies"]), said["secrets"])


def _answer(writer: asyncio.StreamWriter, said: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: it has been closed
        writer.write(json.dumps(said).encode() + b"\n")
