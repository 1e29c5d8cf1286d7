"""What a run says of the code that made it."""

import shutil
import subprocess
from pathlib import Path

import pytest

import polca
from polca.runs.origins import environment

TOP = Path(polca.__file__).parents[1]


@pytest.mark.skipif(not (TOP / ".git").exists() or not shutil.which("git"), reason="not a repository of polca")
def test_the_commit_of_the_code_is_recorded():
    head = subprocess.run(["git", "-C", TOP, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert environment("cpu")["commit"].rstrip("+") == head.stdout.strip()
