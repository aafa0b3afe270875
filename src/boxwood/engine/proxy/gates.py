"""A rule's `gate`: somebody is asked before a request goes on. A private address is never asked."""

from __future__ import annotations

import asyncio

from boxwood.engine.network.addresses import is_public
from boxwood.engine.proxy.channel import Broken
from boxwood.engine.proxy.message import BadMessage, Call, Head
from boxwood.engine.proxy.origins import Origins
from boxwood.engine.proxy.questions import Question, authority
from boxwood.engine.proxy.upstream import Place, Trust, Unverified, Upstreams


class _Unreached(OSError):
    """Nobody was there to be asked; nothing of the request has gone there."""


async def passes(question: Question, origins: Origins, trust: Trust) -> str:
    """Empty: it lets through. Else why not. `deny_on_timeout` is also for a gate that is not there. One that is, and
    breaks off, has not let through in any case: what the request has brought may have made it do so."""
    try:
        async with asyncio.timeout(question.timeout_ms / 1e3):
            host, port, secure, called = authority(question.url)
            addresses = [address for address in await origins.resolve(host) if is_public(address)]
            if not addresses:
                return "its gate has no address on the internet"
            status = await _ask(question, called, Place(host, addresses[0], port, secure), trust)
    except TimeoutError:
        return "its gate did not answer in time" if question.deny_on_timeout else ""
    except Unverified as error:
        return f"its gate could not be verified: {error}"
    except _Unreached:
        return "its gate could not be reached" if question.deny_on_timeout else ""
    except (OSError, BadMessage):
        return "its gate could not be asked"
    return "" if status in question.allow_on_status else f"its gate said {status}"


async def _ask(question: Question, called: str, place: Place, trust: Trust) -> int:
    upstreams = Upstreams(trust, http2=False)
    try:
        call = await _reached(upstreams, place)
        head = Head(question.method, called, question.path, list(question.headers), length=len(question.body))
        await call.open(head, has_body=bool(question.body))
        if question.body:
            await call.send(question.body)
        await call.end([])
        return (await call.reply()).status
    except Broken as error:
        raise OSError(str(error)) from None
    finally:
        upstreams.close()


async def _reached(upstreams: Upstreams, place: Place) -> Call:
    """_Unreached, Unverified, TimeoutError."""
    try:
        return (await upstreams.call(place))[0]
    except (Unverified, TimeoutError):
        raise
    except OSError as error:
        raise _Unreached(str(error)) from None
