"""Several processes that compute one basis and one projection: against one process, and when one of them is killed."""

import numpy as np
import pytest
import torch
import xarray as xr

from polca.compute.projection import project
from polca.compute.store import open_projection
from polca.compute.subspace import hessian_subspace, load_subspace, weight_axes
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.core.processes import torchrun

STEPS = [0, 10, 20, 30, 40, 50, 60]
SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.core.processes import joined, n_processes, process_number
from polca.compute.projection import project
from polca.compute.subspace import hessian_subspace, load_subspace, weight_axes

job, out, dies_in, dies_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if dies_in: signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, so that the others come to say what they noticed

class Dies(Checkpoints):
    "Kills process 1 when it reads a step."
    def read(self, step):
        if armed and step == dies_at and process_number() == 1: os.kill(os.getpid(), signal.SIGKILL)
        return super().read(step)

model, several, one = torch.load(job / "job.pt", weights_only=False)
store, armed = Dies(job / "checkpoints"), dies_in == "basis"
with joined(timeout=60):
    sample, single = TokenLosses(model, several), TokenLosses(model, [one])
    hessian_subspace(store, single, [60], k=3, tol=1e-8, path=out / "single", progress=False)
    hessian_subspace(store, sample, [20, 0, 60], k=2, window=2, tol=1e-8, path=out / "basis", progress=False)
    hessian_subspace(store, sample, [60], matrix="gauss-newton", tol=1e-8, path=out / "gauss-newton", progress=False)
    armed = dies_in == "projection"
    project(store, load_subspace(job / "one" / "basis"), sample, curvature=single, tol=1e-6, path=out / "projection.zarr", progress=False)
    for how in ({"tol": 1e-6}, {"engine": "difference"}, {"curvature": "token"}) if n_processes() == 3 else ():
        project(store, load_subspace(job / "one" / "basis", shard="tol" in how), sample, [0, 10, 20], path=out / f"{list(how)[0]}.zarr", shard=True, progress=False, **how)
    if n_processes() == 2:
        few = weight_axes(sample.params, 5)
        project(store, few, sample, curvature=sample, nodes=3, path=out / "axes.zarr", shard=True, progress=False)
    if n_processes() == 3:
        half = hessian_subspace(store, sample, [20, 0, 60], k=2, window=2, tol=1e-8, path=out / "sharded", shard=True, progress=False)
        assert len(half.own) == len(half.directions) == 2 and len(half) == 6
        project(store, load_subspace(job / "one" / "basis"), sample, [0, 10], curvature="token", path=out / "together.zarr", progress=False)
    assert n_processes() > 1 and process_number() < n_processes()
threads = [(t / "comm").read_text().strip() for t in Path("/proc/self/task").glob("*")]
assert not [t for t in threads if "gloo" in t], threads  # threads of a group that lives on would abort a process that ends
"""


def analyse(store, model, several, one, out, basis=None):
    "What the script does, by one process."
    sample = TokenLosses(model, several)
    single = TokenLosses(model, [one])
    hessian_subspace(store, single, [60], k=3, tol=1e-8, path=out / "single", progress=False)
    found = hessian_subspace(store, sample, [20, 0, 60], k=2, window=2, tol=1e-8, path=out / "basis", progress=False)
    hessian_subspace(store, sample, [60], matrix="gauss-newton", tol=1e-8, path=out / "gauss-newton", progress=False)
    project(store, basis or found, sample, curvature=single, tol=1e-6, path=out / "projection.zarr", progress=False)
    for how in () if basis else ({"tol": 1e-6}, {"engine": "difference"}, {"curvature": "token"}):
        project(store, found, sample, [0, 10, 20], path=out / f"{list(how)[0]}.zarr", progress=False, **how)
    if not basis:
        project(store, found, sample, [0, 10], curvature="token", path=out / "together.zarr", progress=False)
        few = weight_axes(sample.params, 5)
        project(store, few, sample, curvature=sample, nodes=3, path=out / "axes.zarr", progress=False)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    "A small model with checkpoints and data, and what one process finds in them."
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    model = (
        torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 9))
        .double()
        .eval()
    )
    ids = torch.randint(0, 9, (11, 6))
    several = [
        {"input": ids[s], "labels": ids[s].masked_fill(torch.rand(ids[s].shape) < 0.2, -100)}
        for s in (slice(0, 2), slice(2, 7), slice(7, 8), slice(8, 11))
    ]
    store = Checkpoints(folder / "checkpoints")
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in STEPS:
        store.save(step, {n: p * (1 + step / 100) + 0.001 * step for n, p in start.items()})
    one = {"input": ids, "labels": ids}
    torch.save((model, several, one), folder / "job.pt")
    analyse(store, model, several, one, folder / "one")
    return folder, (store, model, several, one)


def assert_the_same(out, expected):
    for name, like in (
        ("single", "single"),
        ("basis", "basis"),
        ("gauss-newton", "gauss-newton"),
        *([("sharded", "basis")] if (out / "sharded").exists() else []),
    ):
        found = load_subspace(out / name)
        wanted = load_subspace(expected / like)
        np.testing.assert_allclose(found.table.eigenvalue, wanted.table.eigenvalue, rtol=1e-6)
        torch.testing.assert_close(
            (found.directions * wanted.directions).sum(1), torch.ones(len(wanted)).double(), rtol=0, atol=1e-6
        )
    for file in out.glob("*.zarr"):
        found, wanted = (
            open_projection(folder / file.name, verify=True).drop_vars("difference_error", errors="ignore")
            for folder in (out, expected)
        )
        # central differences take their step from the first few directions
        rtol = 1e-4 if file.name == "engine.zarr" else 1e-9
        xr.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol / 1000)


@pytest.mark.parametrize("n", [2, 3])
def test_several_processes_find_what_one_finds(job, tmp_path, n):
    folder, _ = job
    done = torchrun(n, SCRIPT, folder, tmp_path, "", 0)
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" not in done.stderr
    assert_the_same(tmp_path, folder / "one")
    assert len(list(tmp_path.glob("*.zarr"))) == (5 if n == 3 else 1)


def test_where_one_is_killed_all_end_and_any_number_goes_on(job, tmp_path):
    folder, parts = job
    killed = torchrun(3, SCRIPT, folder, tmp_path, "basis", 0)
    assert killed.returncode != 0 and "start the same command again" in killed.stderr
    files = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*/*.safetensors")}
    assert {f.name for f in files} == {"directions-00000060.safetensors", "directions-00000020.safetensors"}
    killed = torchrun(2, SCRIPT, folder, tmp_path, "projection", 60)  # its last one
    assert killed.returncode != 0 and "start the same command again" in killed.stderr
    complete = {f: f.stat().st_mtime_ns for f in tmp_path.glob("projection.zarr/complete/[0-9]")}
    assert 1 < len(complete) < len(STEPS)
    analyse(*parts, tmp_path, load_subspace(folder / "one" / "basis"))
    assert_the_same(tmp_path, folder / "one")
    assert all(f.stat().st_mtime_ns == time for f, time in {**files, **complete}.items()), "what was done is made again"
