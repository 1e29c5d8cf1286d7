"""Commands of polca, and functions, in processes that start at once: forked from one that has imported what they need.

Where the start itself is what is tested, tests start the program.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",  # for processes that compute together
        "polca.__main__",
        "polca.tasks.arithmetic_run",
        "polca.tasks.language_run",
        "polca.show.plots",
        "polca.show.report",
        "transformers.models.gpt2.modeling_gpt2",
        "matplotlib.pyplot",
    ]
)
PATIENCE = 300  # seconds, for what takes a few where nothing else runs


def _write_to(out, err):
    "What this process writes from now on goes to two files."
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)


def _call(function, args, folder, environment, out, err):
    "In a process of its own: a function, whose number is the exit status of the process; 1 after an exception."
    import torch

    torch.set_num_threads(1)
    os.environ |= environment
    os.chdir(folder)
    _write_to(out, err)
    try:
        status = function(*args) or 0
    except SystemExit as e:
        status = e.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _main(*args):
    from polca.__main__ import main

    return main([*args])


class Started:
    "A function in a process of its own: `process`, and what it writes."

    def __init__(self, function, args, folder=None, environment=()):
        place = Path(tempfile.mkdtemp())
        self.args = args
        self.files = (place / "out", place / "err")
        self.process = SERVER.Process(
            target=_call, args=(function, args, str(folder or os.getcwd()), dict(environment), *map(str, self.files))
        )
        self.process.start()

    def finished(self):
        "It, as it ends: its exit status and output."
        self.process.join(timeout=PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"{self.args} took more than five minutes")
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in self.files)
        return subprocess.CompletedProcess(self.args, self.process.exitcode, out, err)


def start_polca(*args, cwd=None):
    "A command that was started: its `process` can be killed."
    return Started(_main, tuple(map(str, args)), cwd)


def polca(*args, cwd=None):
    "A command, as it ends: its exit status and output."
    return start_polca(*args, cwd=cwd).finished()


def call(function, *args):
    "A function of a test module in a process of its own, as it ends."
    return Started(function, args).finished()


def free_port():
    "A port of this machine that nothing listens to."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def call_in(n, function, *args):
    "A function in each of `n` processes, which compute together as those of torchrun do; they, as they end."
    together = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [Started(function, args, environment=together | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(n)]
    return [each.finished() for each in started]
