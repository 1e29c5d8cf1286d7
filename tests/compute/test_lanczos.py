"""Lanczos iteration on spectra that are hard: repeated, tiny, of low rank, in float32 and within little memory."""

import warnings

import numpy as np
import pytest
import torch
from compute_examples import dense_hessian, small_losses

from polca.compute.lanczos import SharedRows, _two_passes, dots, lanczos, norm, orthogonalise
from polca.compute.operators import HessianOperator
from polca.core.memory import PeakMemory

TWICE = torch.diag(torch.tensor([2.0, 2, 1, 0, 0]).double())
EYE = torch.eye(5).double()


def rows(d, dtype=torch.float32):
    "Twenty orthonormal rows, and a vector that lies almost along one of them."
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(d, 20).to(dtype)).Q.T.contiguous()
    return q, torch.randn(d).to(dtype) + 1000 * q[3]


@pytest.fixture(scope="module")
def turn():
    torch.manual_seed(1)
    return torch.linalg.qr(torch.randn(300, 300).double()).Q


@pytest.fixture(scope="module")
def spectrum():
    return torch.cat([torch.tensor([9.0, 5, 5, 4]), torch.linspace(-1, 1, 296)]).double()


@pytest.fixture(scope="module")
def matrix(turn, spectrum):
    return turn @ torch.diag(spectrum) @ turn.T


# staying orthogonal


@pytest.mark.parametrize("exact, most", [(False, 1e-6), (True, 3e-9)])
def test_what_is_left_is_orthogonal_though_little_is_left(exact, most):
    q, v = rows(2000)
    u = orthogonalise(v, q, exact=exact)
    assert float((q.double() @ u.double()).abs().max()) / norm(u) < most


def test_no_rows_take_nothing_away():
    q, v = rows(2000)
    assert torch.equal(orthogonalise(v, q[:0]), v)
    assert torch.equal(orthogonalise(v, SharedRows(q[:0], 0)), v)


def test_a_single_process_has_all_shared_rows():
    q, v = rows(2000)
    u = orthogonalise(v, q, exact=True)
    torch.testing.assert_close(orthogonalise(u, SharedRows(q, len(q))), orthogonalise(u, q), rtol=0, atol=1e-5)


def test_bases_may_have_another_dtype():
    q, v = rows(2000)
    wide = orthogonalise(v.double(), torch.linalg.qr(q.double().T).Q.T, q)
    assert float((q.double() @ wide).abs().max()) / norm(wide) < 1e-6


def test_two_passes_in_blocks_are_two_passes():
    q, v = rows(200_000)
    components, rest = _two_passes(v, q)
    expected = (q.double() @ v.double()).float()
    torch.testing.assert_close(components, expected, rtol=1e-5, atol=1e-3)  # of a length of 1000
    torch.testing.assert_close(rest, orthogonalise(v, q), rtol=0, atol=1e-4)
    assert float((q @ rest).abs().max()) / norm(rest) < 1e-6


def test_two_passes_of_a_vector_along_itself_have_its_length():
    big = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    length = float(dots(big[None], big, exact=True)) ** 0.5
    np.testing.assert_allclose(float(_two_passes(big, big[None] / length)[0]), length, rtol=1e-6)


# memory and size


@pytest.mark.parametrize("n_rows", [12, 40])
@pytest.mark.parametrize("k", [1, 3])
def test_the_krylov_space_keeps_its_bound(k, n_rows):
    spectrum = torch.linspace(1, 100, 20_000)
    budget = (2 * n_rows + 6 * k + 6) * spectrum.nbytes
    with PeakMemory() as peak:
        lanczos(spectrum.__mul__, len(spectrum), k=k, memory=budget, max_iterations=60, tol=2e-2)
    assert peak.bytes <= 1.02 * budget  # a margin for the small matrices


def test_the_tolerance_is_reached_in_float32_with_ten_million_weights():
    long = torch.rand(10_000_000, generator=torch.Generator().manual_seed(0)).index_fill_(0, torch.tensor([7]), 5.0)
    pair = lanczos(long.__mul__, len(long), tol=1e-4, max_iterations=20, strict=True)
    np.testing.assert_allclose([pair.values[0], abs(float(pair.vectors[0, 7]))], [5, 1], rtol=1e-5)


@pytest.mark.parametrize("top", [4.0, 0.3])
def test_curvature_that_was_a_thousand_times_larger_before_does_not_hide_the_top(top):
    # a random vector has a product of the size of rounding beside that
    few = torch.zeros(2_000_000).index_copy_(0, torch.tensor([7, 8, 9]), top * torch.tensor([1, 0.75, 0.5]))
    pair = lanczos(few.__mul__, len(few), tol=1e-3, scale=557.0, strict=True)
    np.testing.assert_allclose(pair.values, top, rtol=1e-5)
    assert pair.products < 15


# repeated and crowded eigenvalues


@pytest.mark.parametrize("seed", range(3))
def test_a_repeated_top_is_found_above_others_that_are_close(turn, seed):
    closer = torch.cat([torch.tensor([5.0, 5, 4.9, 4.8, 4.7]), torch.linspace(0, 4.65, 295)]).double()
    product = (turn @ torch.diag(closer) @ turn.T).__matmul__
    pairs = lanczos(product, 300, k=2, tol=1e-4, dtype=torch.float64, seed=seed)
    np.testing.assert_allclose(pairs.values, [5, 5], rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("d", [3000, 30_000])
def test_a_repeated_top_is_found_above_a_bulk_that_is_all_alike(d, seed):
    diagonal = torch.cat([torch.tensor([10.0, 10, 5]), torch.ones(d - 3)])
    np.testing.assert_allclose(lanczos(lambda v: diagonal * v, d, k=2, seed=seed).values, [10, 10], rtol=1e-5)


@pytest.mark.parametrize("k, expected", [(3, [2, 2, 1]), (2, [2, 2])])
def test_a_repeated_top_of_a_tiny_matrix_is_found(k, expected):
    pairs = lanczos(TWICE.__matmul__, 5, k=k, tol=1e-9, dtype=torch.float64)
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-9)


def test_a_repeated_top_is_found_by_magnitude():
    pairs = lanczos((-TWICE).__matmul__, 5, k=2, tol=1e-9, which="magnitude", dtype=torch.float64)
    np.testing.assert_allclose(pairs.values, [-2, -2], rtol=1e-9)


def test_a_spectrum_below_zero_has_a_top():
    negative = lanczos((-TWICE - EYE).__matmul__, 5, k=3, tol=1e-9, dtype=torch.float64)
    np.testing.assert_allclose(negative.values, [-1, -1, -2], rtol=1e-9)


def test_half_of_a_repeated_pair_may_be_stored_in_another_dtype(matrix):
    # seed 0 starts without the second five; the first, and the nine, are projected out
    known = lanczos(matrix.__matmul__, 300, k=3, tol=1e-6, dtype=torch.float64, repeated=False).vectors[:2].float()
    pair = lanczos(matrix.__matmul__, 300, tol=1e-6, against=known, dtype=torch.float64, seed=1)
    np.testing.assert_allclose(pair.values, [5], rtol=1e-6)


def test_all_pairs_of_a_hessian_are_found():
    losses = small_losses()
    product = HessianOperator(losses, losses.params).__matmul__
    every = lanczos(product, 43, k=43, tol=1e-8, dtype=torch.float64)
    values = torch.linalg.eigvalsh(dense_hessian(losses))
    np.testing.assert_allclose(every.values, values.flip(0), atol=1e-9)


def test_most_of_a_bulk_is_found_in_float32_and_orthonormal(matrix, spectrum):
    pairs = lanczos(matrix.float().__matmul__, 300, k=50, tol=1e-3, max_iterations=300)
    np.testing.assert_allclose(pairs.values, spectrum.sort(descending=True).values[:50], rtol=1e-3)
    products = pairs.vectors.double() @ pairs.vectors.double().T
    assert float((products - torch.eye(50)).abs().sum(1).max()) <= 1e-6


# eigenvalues that are small or zero


@pytest.mark.parametrize("outliers", [[-1.0, -0.7], [-1.0, -1.0]])
@pytest.mark.parametrize("width", [1e-4, 3e-4, 1e-3])
def test_a_value_that_passes_zero_is_not_the_top_below_large_negative_ones(width, outliers):
    diagonal = torch.cat([torch.tensor(outliers), torch.linspace(-width, width, 2998)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pair = lanczos(lambda v: diagonal * v, 3000, tol=1e-2)
    value = float(pair.values[0])
    rest = (diagonal * pair.vectors[0] - value * pair.vectors[0]).norm() / abs(value)
    assert pair.residuals[0] > 1e-2 or (rest < 2e-2 and value > 0.9 * width)


@pytest.mark.parametrize("sign", [1, -1])
def test_far_more_pairs_than_the_rank_are_zero_and_not_iterated_on(sign):
    row = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    pairs = lanczos(
        lambda v: sign * row.T @ (row @ v[:, None]) @ torch.ones(1), 400, k=10, which="magnitude", strict=True
    )
    assert pairs.products < 100 and (pairs.residuals < 1e-3).all()


@pytest.mark.parametrize("k", [1, 4])
def test_the_zero_matrix_has_orthonormal_eigenvectors(k):
    zero = lanczos(torch.zeros(4, 4).double().__matmul__, 4, k=k, dtype=torch.float64)
    assert (zero.values == 0).all() and (zero.residuals == 0).all()
    torch.testing.assert_close(zero.vectors @ zero.vectors.T, torch.eye(k).double())


@pytest.mark.parametrize("seed", range(10))
def test_eigenvalues_that_are_rounding_are_not_told_to_be_unconverged(seed):
    # they meet the tolerance relative to the largest curvature
    below = torch.diag(torch.tensor([0.0, 0, *range(-1, -20, -1)]).double())
    lanczos(below.__matmul__, 21, 2, dtype=torch.float64, seed=seed, strict=True)


@pytest.mark.parametrize("budget", [5, 200])
def test_a_matrix_of_rank_one_has_a_second_pair_within_any_budget(budget):
    row = torch.linalg.qr(torch.randn(100, 1, generator=torch.Generator().manual_seed(0))).Q
    pairs = lanczos(lambda v: 5 * row @ (row.T @ v[:, None])[:, 0], 100, 2, max_iterations=budget, strict=True)
    np.testing.assert_allclose(pairs.values, [5, 0], atol=1e-5)


# what is refused

REFUSED = {
    "which=": {"which": "top"},
    "ask for": {"k": 0},
    "finite vector of 5": {"start": torch.full((5,), torch.nan)},
    "one direction of 5": {"against": torch.eye(4)[:2]},
    "not orthonormal": {"against": torch.ones(2, 5)},
    "above 0": {"tol": float("nan")},
    "at least 3 products": {"k": 3, "max_iterations": 2},
}
ELSEWHERE = {
    "a start of zero": {"start": torch.zeros(5)},
    "a start in the span of `against`": {"against": EYE[:2], "start": EYE[1]},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_refused(words):
    with pytest.raises(ValueError, match=words):
        lanczos(TWICE.__matmul__, 5, **REFUSED[words])


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_start_without_a_direction_is_refused(case):
    with pytest.raises(ValueError, match="start elsewhere"):
        lanczos(TWICE.__matmul__, 5, dtype=torch.float64, **ELSEWHERE[case])


def test_products_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        lanczos((TWICE * float("nan")).__matmul__, 5, dtype=torch.float64)


def test_the_warning_of_unconverged_pairs_is_in_the_name_of_the_caller():
    hard = torch.diag(torch.linspace(0.99, 1, 200).double())
    with pytest.warns(RuntimeWarning, match="did not reach") as caught:
        lanczos(hard.__matmul__, 200, max_iterations=5, tol=1e-9, dtype=torch.float64)
    assert caught[0].filename == __file__
