"""Several processes that compute one basis and one projection: against one process, and when one of them is killed.

They start as torchrun starts them, but at once; torchrun itself is in test_cli.py and in nbs/core/30_processes.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from commands import call_in

from polca.compute.basis_files import load_subspace
from polca.compute.projection import project
from polca.compute.store import open_projection
from polca.compute.subspace import hessian_subspace
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.core.processes import joined, n_processes, process_number

STEPS = [0, 10, 20, 30, 40, 50, 60]
SOURCES = [20, 0, 60]
WAYS = {"tol": {"tol": 1e-6}, "engine": {"engine": "difference"}, "curvature": {"curvature": "token"}}


class Dies(Checkpoints):
    "Kills process 1 when it reads the step `deadly`, once it is `armed`."

    armed = False
    deadly = 0

    def read(self, step):
        if self.armed and step == self.deadly and process_number() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(step)


def find_bases(store, sample, single, out):
    "Three bases, of which one is returned."
    hessian_subspace(store, single, [60], k=3, tol=1e-8, path=out / "single", progress=False)
    basis = hessian_subspace(store, sample, SOURCES, k=2, window=2, tol=1e-8, path=out / "basis", progress=False)
    hessian_subspace(store, sample, [60], matrix="gauss-newton", tol=1e-8, path=out / "gauss-newton", progress=False)
    return basis


def project_all(store, basis, sample, single, out):
    project(store, basis, sample, curvature=single, tol=1e-6, path=out / "projection.zarr", progress=False)


def by_one(store, sample, single, out):
    "What one process finds."
    basis = find_bases(store, sample, single, out)
    project_all(store, basis, sample, single, out)
    for name, how in WAYS.items():
        project(store, basis, sample, [0, 10, 20], path=out / f"{name}.zarr", progress=False, **how)
    project(store, basis, sample, [0, 10], curvature="token", path=out / "together.zarr", progress=False)


def in_shards(store, job, sample, out):
    "The same where each process has a share of the directions, of which it may have loaded the others or not."
    for name, how in WAYS.items():
        basis = load_subspace(job / "one" / "basis", shard=name == "tol")
        project(store, basis, sample, [0, 10, 20], path=out / f"{name}.zarr", shard=True, progress=False, **how)
    half = hessian_subspace(
        store, sample, SOURCES, k=2, window=2, tol=1e-8, path=out / "sharded", shard=True, progress=False
    )
    assert len(half.own) == len(half.directions) == 2
    assert len(half) == 6
    whole = load_subspace(job / "one" / "basis")
    project(store, whole, sample, [0, 10], curvature="token", path=out / "together.zarr", progress=False)


def by_several(job, out, dies_in="", dies_at=0):
    "In one of several processes: what one process finds; of three processes also in shards."
    store = Dies(job / "checkpoints")
    store.deadly = dies_at
    with joined(timeout=60):
        sample, single = open_losses(job)
        store.armed = dies_in == "basis"
        find_bases(store, sample, single, out)
        store.armed = dies_in == "projection"
        project_all(store, load_subspace(job / "one" / "basis"), sample, single, out)
        if n_processes() == 3:
            in_shards(store, job, sample, out)
        assert 1 < n_processes()
        assert process_number() < n_processes()
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
    # threads of a group that lives on would abort a process that ends
    assert not [name for name in names if "gloo" in name], names


def open_losses(job):
    "The losses of several batches, and of one."
    model, several, one = torch.load(job / "job.pt", weights_only=False)
    return TokenLosses(model, several), TokenLosses(model, [one])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    "A small model with checkpoints and data, and what one process finds in them."
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    layers = (torch.nn.Embedding(9, 4), torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 9))
    model = torch.nn.Sequential(*layers).double().eval()
    ids = torch.randint(0, 9, (11, 6))
    parts = [ids[s] for s in (slice(0, 2), slice(2, 7), slice(7, 8), slice(8, 11))]
    several = [{"input": part, "labels": part.masked_fill(torch.rand(part.shape) < 0.2, -100)} for part in parts]
    store = Checkpoints(folder / "checkpoints")
    start = {name: values.detach().clone() for name, values in model.named_parameters()}
    for step in STEPS:
        store.save(step, {name: values * (1 + step / 100) + 0.001 * step for name, values in start.items()})
    torch.save((model, several, {"input": ids, "labels": ids}), folder / "job.pt")
    by_one(store, *open_losses(folder), folder / "one")
    return folder


def assert_same_basis(found, expected):
    found = load_subspace(found)
    expected = load_subspace(expected)
    np.testing.assert_allclose(found.table.eigenvalue, expected.table.eigenvalue, rtol=1e-6)
    cosines = (found.directions * expected.directions).sum(1)
    torch.testing.assert_close(cosines, torch.ones(len(expected)).double(), rtol=0, atol=1e-6)


def read_projection(path):
    return open_projection(path, verify=True).drop_vars("difference_error", errors="ignore")


def assert_same_projection(found, expected):
    # central differences take their step from the first few directions
    rtol = 1e-4 if found.name == "engine.zarr" else 1e-9
    xr.testing.assert_allclose(read_projection(found), read_projection(expected), rtol=rtol, atol=rtol / 1000)


def assert_the_same(out, expected):
    for name in ("single", "basis", "gauss-newton"):
        assert_same_basis(out / name, expected / name)
    if (out / "sharded").exists():
        assert_same_basis(out / "sharded", expected / "basis")
    for file in out.glob("*.zarr"):
        assert_same_projection(file, expected / file.name)


@pytest.mark.parametrize("n", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_several_processes_find_what_one_finds(job, tmp_path, n):
    for done in call_in(n, by_several, job, tmp_path):
        assert done.returncode == 0, done.stderr
        assert "RuntimeWarning" not in done.stderr
    assert_the_same(tmp_path, job / "one")
    assert len(list(tmp_path.glob("*.zarr"))) == (5 if n == 3 else 1)


def assert_killed(processes):
    "Process 1 was killed, and the others say what to do."
    for number, done in enumerate(processes):
        if number == 1:
            assert done.returncode == -signal.SIGKILL
        else:
            assert done.returncode == 1
            assert "start the same command again" in done.stderr


def times(files):
    return {file: file.stat().st_mtime_ns for file in files}


def test_where_one_is_killed_all_end_and_any_number_goes_on(job, tmp_path):
    assert_killed(call_in(3, by_several, job, tmp_path, "basis", 0))
    directions = times(tmp_path.glob("*/*.safetensors"))
    assert {f.name for f in directions} == {"directions-00000060.safetensors", "directions-00000020.safetensors"}

    assert_killed(call_in(2, by_several, job, tmp_path, "projection", 60))  # its last one
    complete = times(tmp_path.glob("projection.zarr/complete/[0-9]"))
    assert 1 < len(complete) < len(STEPS)

    store = Checkpoints(job / "checkpoints")
    sample, single = open_losses(job)
    find_bases(store, sample, single, tmp_path)
    project_all(store, load_subspace(job / "one" / "basis"), sample, single, tmp_path)
    assert_the_same(tmp_path, job / "one")
    assert times([*directions, *complete]) == directions | complete, "what was done is made again"
