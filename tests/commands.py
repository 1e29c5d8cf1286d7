"""Commands of polca in processes that start at once, forked from one that has already imported what they need.

Where the start itself is what is tested, tests start the program.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "polca.__main__",
        "polca.tasks.arithmetic_run",
        "polca.tasks.language_run",
        "polca.show.plots",
        "polca.show.report",
        "transformers.models.gpt2.modeling_gpt2",
        "matplotlib.pyplot",
    ]
)


def _command(args, folder, out, err):
    "In a process of its own: the command, with its output in the files `out` and `err`."
    import torch

    from polca.__main__ import main

    torch.set_num_threads(1)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    code = main(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_polca(*args, cwd=None):
    "The process of a command, which can be killed, and the files with its output."
    place = Path(tempfile.mkdtemp())
    files = (str(place / "out"), str(place / "err"))
    process = SERVER.Process(target=_command, args=([*map(str, args)], str(cwd or os.getcwd()), *files))
    process.start()
    return process, files


def polca(*args, cwd=None):
    "A command, as it ends: its exit status and output."
    process, files = start_polca(*args, cwd=cwd)
    process.join(timeout=300)
    assert process.exitcode is not None, f"polca {args} took more than five minutes"
    out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
    return subprocess.CompletedProcess(args, process.exitcode, out, err)
