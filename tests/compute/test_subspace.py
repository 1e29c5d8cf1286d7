"""Algorithm 1: against dense matrices, after interruptions, by several processes, and what is refused."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from trained import Trained, cross_entropy

from polca.compute.basis import orthonormality_error
from polca.compute.basis_files import directions_file, load_directions, load_subspace, save_directions
from polca.compute.lanczos import orthogonalise
from polca.compute.subspace import hessian_subspace
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses, flatten, unflatten
from polca.core.processes import torchrun

STEPS = range(0, 50, 10)
SHUFFLED = [60, 0, 100, 20, 40, 80]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def straight(trained):
    "A basis that was made without an interruption, and where its files are."
    path = trained.folder / "straight"
    return hessian_subspace(trained.store, trained.losses_32, STEPS, path=path, progress=False), path


def basis_of(trained, steps=STEPS, **settings):
    return hessian_subspace(trained.store, trained.losses_32, steps, progress=False, **settings)


def dense_matrix(trained, step, matrix):
    theta = trained.store.load(step)
    weights = flatten(theta)
    losses = trained.losses

    def token_losses(v):
        return losses.batch(0, unflatten(v, theta))

    def logits(v):
        return torch.func.functional_call(losses.model, unflatten(v, theta), (trained.data["x"],))

    if matrix == "hessian":
        return torch.func.hessian(lambda v: token_losses(v).mean())(weights)
    if matrix == "gradients":
        G = torch.func.jacrev(token_losses)(weights)
        return G.T @ G / len(G)
    J = torch.func.jacrev(logits)(weights)
    p = logits(weights).softmax(1)
    return torch.einsum("xci,xce,xej->ij", J, torch.diag_embed(p) - p[:, :, None] * p[:, None], J) / len(J)


def dense_directions(trained, steps, matrix, window=1, k=1):
    "Algorithm 1 literally."
    B = torch.empty(0, 43).double()
    for i in range(len(steps)):
        H = sum(dense_matrix(trained, step, matrix) for step in steps[max(0, i + 1 - window) : i + 1])
        Pi = torch.eye(43).double() - B.T @ B
        B = torch.cat([B, torch.linalg.eigh(Pi @ H @ Pi).eigenvectors[:, -k:].flip(1).T])
    return B


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton", "gradients"])
@pytest.mark.parametrize("steps, how", [(SHUFFLED, {}), (SHUFFLED, {"window": 3}), ([100], {"k": 4})])
def test_directions_are_those_of_dense_matrices(trained, matrix, steps, how):
    basis = hessian_subspace(trained.store, trained.losses, steps, matrix=matrix, tol=1e-10, progress=False, **how)
    cosines = (basis.directions * dense_directions(trained, steps, matrix, **how)).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(len(basis)).double(), atol=1e-7, rtol=0)


def test_what_comes_after_a_file_that_was_made_again_is_made_again(trained, straight, tmp_path):
    basis, path = straight
    where = shutil.copytree(path, tmp_path / "moved")
    directions, header = load_directions(directions_file(where, 10))
    first = load_directions(directions_file(where, 0))[0]
    chance = torch.randn(43, generator=torch.Generator().manual_seed(0))
    moved = directions[0] + 1e-4 * orthogonalise(chance, first)
    save_directions(where, 10, (moved / moved.norm())[None], header)
    again = basis_of(trained, path=where)
    assert torch.equal(again.directions[:1], basis.directions[:1])
    assert not torch.equal(again.directions[2], basis.directions[2])
    assert orthonormality_error(again.directions) < 1e-6 and (again.table.residual <= 1e-3).all()


def test_directions_can_be_kept_in_another_dtype(trained, straight):
    kept = basis_of(trained, dtype=torch.float64, device="cpu")
    assert kept.directions.dtype == torch.float64 and orthonormality_error(kept.directions) < 1e-6
    cosines = (kept.directions.float() * straight[0].directions).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(5), atol=1e-4, rtol=0)


def test_a_model_in_half_precision_has_directions_in_float32(trained):
    def loss(model, batch):
        return cross_entropy(model, {**batch, "x": batch["x"].to(next(model.parameters()).dtype)})

    half = TokenLosses(trained.network(torch.bfloat16), [trained.batch(torch.bfloat16)], loss=loss)
    basis = hessian_subspace(trained.store, half, [0], progress=False)
    assert basis.directions.dtype == torch.float32


def test_files_of_another_loss_are_refused(trained, straight):
    squared = TokenLosses(trained.losses_32.model, trained.losses_32.batches, lambda m, b: cross_entropy(m, b) ** 2)
    with pytest.raises(ValueError, match="loss="):
        hessian_subspace(trained.store, squared, STEPS, path=straight[1])


def test_files_of_other_weights_are_refused(trained, straight, tmp_path):
    moved = Checkpoints(tmp_path / "moved")
    for step in STEPS:
        moved.save(step, {name: p + 0.01 for name, p in trained.store.load(step).items()})
    with pytest.raises(ValueError, match="weights="):
        hessian_subspace(moved, trained.losses_32, STEPS, path=straight[1])


def test_numbers_may_be_numpys(trained, tmp_path):
    basis = basis_of(trained, np.array([0, 10]), k=np.int64(1), path=tmp_path / "numpy")
    assert len(basis) == 2


@pytest.mark.parametrize(
    "error, message, steps, how",
    [
        (ValueError, "half precision", [0], {"dtype": torch.bfloat16}),
        (ValueError, "use one of hessian", [0], {"matrix": "fisher"}),
        (ValueError, "at least one source step", [0], {"window": 0}),
        (ValueError, "each once", [10, 10], {}),
        (TypeError, "integer", [0, 10], {"k": 2.9}),
        (ValueError, "above 0", [0, 10], {"tol": float("nan")}),
    ],
)
def test_what_cannot_be_is_refused(trained, error, message, steps, how):
    with pytest.raises(error, match=message):
        basis_of(trained, steps, **how)


def test_what_missed_the_tolerance_is_an_error_where_strict_and_made_again_with_more_iterations(trained, tmp_path):
    path = tmp_path / "strictly"
    with pytest.raises(ValueError, match="at step 0"):
        basis_of(trained, [0, 10], max_iterations=2, strict=True, path=path)
    with pytest.warns(RuntimeWarning, match="did not reach"):
        basis_of(trained, [0, 10], max_iterations=2, path=path)
    finished = basis_of(trained, [0, 10], strict=True, path=path)
    assert (finished.table.residual <= 1e-3).all()


def test_the_warning_names_the_call(trained):
    with pytest.warns(RuntimeWarning, match="did not reach") as caught:
        basis_of(trained, [0, 10], max_iterations=2)
    assert caught[-1].filename == __file__


def test_a_hessian_whose_dimensions_are_used_up_gives_orthonormal_directions(tmp_path):
    torch.manual_seed(0)
    batch = {"x": torch.randn(30, 4)}
    model = nn.Linear(4, 1).eval()
    line = TokenLosses(model, [batch], loss=lambda m, b: (m(b["x"])[:, 0] - 1).square() * 100)
    store = Checkpoints(tmp_path / "line")
    for step in range(7):
        store.save(step, {name: p + step for name, p in line.params.items()})
    with warnings.catch_warnings(record=True):  # the norm of the weights jumps
        basis = hessian_subspace(store, line, range(5), strict=True, progress=False)
    assert orthonormality_error(basis.directions) < 1e-6 and basis.table.iterations.max() <= 10


SCRIPT = """
import sys, torch
from pathlib import Path
from polca.compute.subspace import hessian_subspace
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.core.processes import joined, process_number

job = Path(sys.argv[1])
net, batches = torch.load(job / "job.pt", weights_only=False)

def cross_entropy(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

def basis(path, **how):
    "Made, and the second time found done."
    for _ in range(2):
        made = hessian_subspace(store, losses, range(0, 50, 10), path=job / path, progress=False, **how)
    return made

store = Checkpoints(job / "checkpoints")
losses = TokenLosses(net, batches, loss=cross_entropy)
with joined(timeout=60):
    whole = basis("by two")
    part = basis("in halves", shard=True)
    assert part.own == (range(0, 2), range(2, 5))[process_number()]
    assert part.directions.shape == (len(part.own), 43) and len(part) == 5
    if process_number() == 1:
        torch.save((whole.directions, part.directions, part.fingerprint()), job / "of the second.pt")
"""


def test_two_processes_find_what_one_finds_and_may_each_keep_a_half(trained, straight):
    job = trained.folder
    torch.save((trained.losses_32.model, trained.losses_32.batches), job / "job.pt")
    done = torchrun(2, SCRIPT, job)
    assert done.returncode == 0, done.stderr
    whole, half, mark = torch.load(job / "of the second.pt")
    by_two = load_subspace(job / "by two", losses=trained.losses_32)
    in_halves = load_subspace(job / "in halves", losses=trained.losses_32)
    for basis in (by_two, in_halves):
        cosines = (basis.directions * straight[0].directions).sum(1)
        torch.testing.assert_close(cosines, torch.ones(5), atol=1e-5, rtol=0)
    assert torch.equal(by_two.directions, whole)
    assert torch.equal(in_halves.directions[2:], half) and mark == in_halves.fingerprint()
