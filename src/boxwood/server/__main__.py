"""`python -m boxwood.server [--data DIR] [--host ADDRESS] [--port PORT]`. Exit code 1: it could not start, and why."""

from __future__ import annotations

import argparse
import sys

from boxwood.core.config import Config, ConfigError
from boxwood.core.core import DataInUse
from boxwood.engine.api import EngineError
from boxwood.server import log
from boxwood.server.listeners import CannotStart
from boxwood.server.main import serve
from boxwood.store.database import StoreError


def main() -> int:
    parser = argparse.ArgumentParser(prog="boxwood.server", description="Serve the REST API of this machine's VMs.")
    parser.add_argument("--data", help="the data directory (default: $BOXWOOD_DATA, or the user's own)")
    parser.add_argument("--host", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="the port to listen on (default: 18888; 0: any)")
    given = parser.parse_args()
    log.set_up()
    try:
        serve(Config.load(given.data, host=given.host, port=given.port))
    except (ConfigError, CannotStart, DataInUse, EngineError, StoreError, OSError) as error:
        sys.stderr.write(f"boxwood: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
