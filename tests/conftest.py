"""For all tests: one thread for each process, as several run at a time and would wait for each other; and the files
that take longest come first, so that none of them is left to one process while the other has nothing to do.

Tests marked `nightly` are a second way to see what another test sees, or of a case that seldom changes, and take long,
by themselves or together: they run with POLCA_NIGHTLY=1, as .github/workflows/nightly.yml sets it.
"""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

# by the time they take, which was measured; the others take seconds
LONGEST = (
    "test_cli.py",
    "test_faults.py",
    "test_explorer.py",
    "test_language.py",
    "test_memory.py",
    "test_processes.py",
    "test_foreign.py",
    "test_widgets.py",
    "test_package.py",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests
    config.addinivalue_line("markers", "nightly: runs with POLCA_NIGHTLY=1 only")


def pytest_collection_modifyitems(items):
    if not os.environ.get("POLCA_NIGHTLY"):
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(pytest.mark.skip(reason="nightly: set POLCA_NIGHTLY=1 to run it"))
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
