"""A wheel of this repository, in a fresh environment away from it, runs the main job.

With --lowest, with the lowest version of every package that settings.ini admits; else with those of constraints.txt.
"""

import configparser
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lowest() -> str:
    "A constraint for every requirement of settings.ini: its lower bound."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    bounds = re.findall(r"([\w.-]+)>=([\w.]+)", parser["DEFAULT"]["requirements"])
    return "".join(f"{name}=={version}\n" for name, version in bounds)


def try_wheel(constraints: Path, place: Path) -> None:
    "Build, install and run, in the folder `place`."
    run = {"check": True, "cwd": place}
    clone = place / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], **run)
    venv.create(place / "venv", with_pip=True, upgrade_deps=True)
    scripts = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    subprocess.run([python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(place), str(clone)], **run)
    (wheel,) = place.glob("polca_lm-*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", str(constraints), str(wheel)], **run)
    subprocess.run([python, "-m", "pip", "check"], **run)
    where = subprocess.run([python, "-c", "import polca; print(polca.__file__)"], capture_output=True, text=True, **run)
    assert str(place / "venv") in where.stdout, f"polca was imported from {where.stdout}"
    subprocess.run([python, "-m", "pip", "list"], **run)
    subprocess.run([str(scripts / "polca"), "run", "arithmetic", "--preset", "tiny", "--out", "run"], **run)
    subprocess.run([str(scripts / "polca"), "inspect", "run"], **run)


with tempfile.TemporaryDirectory() as folder:
    chosen = ROOT / "constraints.txt"
    if "--lowest" in sys.argv:
        chosen = Path(folder) / "lowest.txt"
        chosen.write_text(lowest(), encoding="utf-8")
    try_wheel(chosen, Path(folder))
