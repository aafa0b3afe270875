"""An interpreter that has imported a client and forks itself for each script: importing some clients takes seconds.

`warm.py MODULE` in the client's environment. Each line of its input is a script to run, as JSON: `script` and `argv`,
`cwd`, `environment`, the files `stdout` and `stderr`, and the file `seen` for what `recorder.py` notes (or null).
A line of its output is that script's exit code. Each script has a process of its own, and sees nothing of another.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for recorder, and for what scenarios share

import recorder


def main():
    module = importlib.import_module(sys.argv[1])
    recorder.install(module)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            in_child(json.loads(line), module)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def in_child(request, module):
    code = 1
    try:
        for target, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, request["stdout"], os.O_WRONLY | os.O_CREAT),
            (2, request["stderr"], os.O_WRONLY | os.O_CREAT),
        ):
            opened = os.open(path, flags, 0o600)
            os.dup2(opened, target)
            os.close(opened)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        look_again()
        sys.argv = [request["script"], *request["argv"]]
        code = run(request["script"])
        if request["seen"]:
            recorder.save(module, request["seen"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def look_again():
    """What libraries have read from the environment when they were imported."""
    if "kubernetes" in sys.modules:
        kube_config = importlib.import_module("kubernetes.config.kube_config")
        kube_config.KUBE_CONFIG_DEFAULT_LOCATION = os.environ.get("KUBECONFIG", "~/.kube/config")


def run(script):
    """The exit code that an interpreter of its own would have."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
