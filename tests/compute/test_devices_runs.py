"""Bases, projections of whole runs and interventions with the model on another device than the CPU, where checkpoints
are read and a basis may be kept; and whether there is a public function that none of these tests runs."""

import inspect
import pkgutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
import test_devices  # noqa: F401  # its cases count, too
import torch
from both_devices import all_that_ran, both_devices
from compute_examples import cross_entropy
from device_examples import classes, seeded, unit_rows
from trained import Trained

import polca.compute
from polca.compute.along import mean_curvature, token_curvature
from polca.compute.bases import (
    describe,
    gradient_subspace,
    held_movement,
    jacobian_subspace,
    overlap,
    random_subspace,
    rotate,
    trajectory_subspace,
)
from polca.compute.basis import Subspace, as_subspace, weight_axes
from polca.compute.basis_files import fingerprint_subspace, load_subspace, save_subspace
from polca.compute.displacements import displacement_subspace, mean_account
from polca.compute.interventions import intervene, knob_effects, random_vectors, weight_vector, without_movement
from polca.compute.operators import HessianOperator
from polca.compute.projection import project
from polca.compute.store import open_projection
from polca.compute.subspace import hessian_subspace
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.runs.estimates import estimate_mean_gradients, estimate_projection, estimate_subspace

STEPS = [0, 30, 60, 100]
QUIET = {"progress": False}


@cache
def trained() -> Trained:
    folder = tempfile.TemporaryDirectory()
    found = Trained(Path(folder.name))
    found.keeps = folder
    return found


def losses_of(at, dtype=torch.float64):
    "The losses of nine examples at the trained weights."
    batch = {name: values[:9] for name, values in trained().batch(dtype).items()}
    return TokenLosses(at(trained().network(dtype)), at([batch]), cross_entropy)


def bases(at, losses) -> list[Subspace]:
    "The same one on the device of the model, and on the CPU, as `load_subspace` gives it."
    here = as_subspace(unit_rows(losses, 3), losses.params)
    return [Subspace(at(here.directions), here.table, here.shapes), here]


@both_devices
def test_a_basis_of_eigenvectors(at):
    losses = losses_of(at, torch.float32)
    store = trained().store
    steps = [30, 100]
    found = [hessian_subspace(store, losses, steps, 2, matrix=m, window=2, **QUIET) for m in ("hessian", "gradients")]
    kept = {"device": "cpu", "dtype": torch.float64, "path": at.folder}
    on_cpu = hessian_subspace(store, losses, steps, **kept, **QUIET)
    again = hessian_subspace(store, losses, steps, path=at.folder, **QUIET)
    shared = hessian_subspace(store, losses, steps, path=at.folder, shard=True, **QUIET)
    return found, on_cpu.directions.numpy(), again, shared.directions.numpy()


@both_devices
def test_other_bases(at):
    losses = losses_of(at)
    store = trained().store
    pulls = gradient_subspace(store, losses, STEPS, **QUIET)
    found = [pulls, random_subspace(losses.params, 3), weight_axes(losses.params, 3)]
    found.append(jacobian_subspace(store, losses, STEPS, 2, tol=1e-6))
    found.append(rotate(pulls, at(seeded(20, 4))))
    path = trajectory_subspace(store, 2, steps=STEPS, **QUIET)
    shares = [held_movement(pulls, store, STEPS), describe(pulls, store, STEPS, other=path)]
    return found, path.directions.numpy(), shares, overlap(pulls, path), overlap(path, pulls)


@both_devices
def test_a_basis_and_checkpoints_on_disk(at):
    losses = losses_of(at)
    basis = random_subspace(losses.params, 3)
    path = at.folder / "basis"
    save_subspace(basis, path)
    loaded = load_subspace(path, losses.params, losses)
    store = Checkpoints(at.folder / "checkpoints")
    store.save(0, losses.model)
    weights = {name: p.numpy() for name, p in store.load(0).items()}
    return loaded.directions.numpy(), fingerprint_subspace(path), basis.fingerprint(), weights, store.load(0, at.device)


@both_devices
def test_projections_on_a_basis_anywhere(at):
    losses = losses_of(at)
    store = trained().store
    there, here = bases(at, losses)
    beside = displacement_subspace(store, there, losses, STEPS, None, 2, **QUIET)
    beside_here = Subspace(beside.directions.cpu(), beside.table, beside.shapes)
    options = {"tol": 1e-3, "max_nodes": 3, **QUIET}
    found = [
        project(store, there, losses, STEPS[::2], curvature="token", displacements=beside_here, **options),
        project(store, here, losses, STEPS[::2], curvature=losses, displacements=beside, **options),
    ]
    path = at.folder / "projection"
    project(store, there, losses, STEPS[::2], engine="difference", path=path, **QUIET)
    return found, open_projection(path, verify=True).load()


@pytest.mark.filterwarnings("ignore:buffers of the model change")
@both_devices
def test_a_run_of_a_model_with_buffers(at):
    losses = classes(at)
    store = Checkpoints(at.folder)
    for step in range(3):
        store.save(step, losses.model)  # from there
        with torch.no_grad():
            for tensor in (*losses.model.parameters(), losses.model.shift):
                tensor += 0.05 * at(seeded(*tensor.shape, seed=step))
    return project(store, bases(at, losses)[0], losses, curvature=losses, nodes=1, **QUIET)


@both_devices
def test_the_mean_loss_and_displacements_beside_a_basis_anywhere(at):
    losses = losses_of(at)
    store = trained().store
    there, here = bases(at, losses)
    accounts = [mean_account(store, losses, STEPS, [basis.directions]) for basis in (there, here)]
    beside = displacement_subspace(store, here, losses, STEPS, **QUIET)
    assert accounts[0].error < 1
    return accounts, displacement_subspace(store, there, losses, STEPS, **QUIET), beside.directions.numpy()


@both_devices
def test_curvature_along_a_basis_anywhere(at):
    losses = losses_of(at)
    there, here = (basis.directions for basis in bases(at, losses))
    H = HessianOperator(losses, losses.params)
    each = [token_curvature(losses, losses.params, B) for B in (there, here)]
    return each, mean_curvature(H, there), mean_curvature(H, here).numpy(), H @ here[0]


@both_devices
def test_estimates(at):
    losses = losses_of(at, torch.float32)
    store = trained().store
    assert estimate_mean_gradients(store, losses, STEPS) > 0
    return estimate_subspace(store, losses, STEPS).disk, estimate_projection(store, losses, STEPS, 3, losses).disk


@both_devices
def test_interventions(at):
    losses = losses_of(at)
    params = losses.params
    found = []
    for basis in bases(at, losses):
        found.append(intervene(losses, params, weight_vector(basis, [1, 2, 3])))
        found.append(knob_effects(losses, params, basis, [1, 2, 3], np.arange(9.0), draws=2))
        found.append(without_movement(losses, params, basis, [1, 2, 3], np.ones((2, 3))))
    there = bases(at, losses)[0]
    return found, [random_vectors(there, 2, inside) for inside in (True, False)]


# what is public, and runs in no case on the other device; and why
NOT_RUN = {
    "core.memory.on_cpu": "is of the memory of the CPU",
    "compute.smooth.ForwardHooks.hooks": "is left to subclasses",
}
SOURCE = Path(polca.compute.__file__).parents[1]


def own_functions(kind: type) -> dict[str, Callable]:
    "The methods and properties that a class defines, but those of a protocol, and those that are private."
    if getattr(kind, "_is_protocol", False):
        return {}
    members = {name: getattr(member, "fget", member) for name, member in vars(kind).items()}
    members = {name: getattr(member, "__func__", member) for name, member in members.items()}
    public = {name: member for name, member in members.items() if not name.startswith("_") or name.startswith("__")}
    return {name: member for name, member in public.items() if inspect.isfunction(member)}


def public_code() -> dict[str, CodeType]:
    "What is public in polca.compute, in polca.core.losses and in polca.core.memory, and has code in polca."
    modules = [f"polca.compute.{module.name}" for module in pkgutil.iter_modules(polca.compute.__path__)]
    found = {}
    for path in [*modules, "polca.core.losses", "polca.core.memory"]:
        module = import_module(path)
        for name in module.__all__:
            member = getattr(module, name)
            own = own_functions(member) if inspect.isclass(member) else {"": member}
            short = f"{path.removeprefix('polca.')}.{name}"
            found |= {f"{short}.{n}".rstrip("."): f for n, f in own.items() if inspect.isfunction(f)}
    codes = {name: inspect.unwrap(member).__code__ for name, member in found.items()}
    return {name: code for name, code in codes.items() if code.co_filename.startswith(str(SOURCE))}


def test_what_is_public_runs_on_the_other_device_or_is_in_the_table():
    ran = all_that_ran()
    missing = {name for name, code in public_code().items() if code not in ran}
    assert missing == set(NOT_RUN)
