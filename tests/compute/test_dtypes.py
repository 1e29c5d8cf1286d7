"""Models, directions and vectors in different dtypes, against the same in float64; what is refused, says what to do."""

from functools import cache

import numpy as np
import pytest
import torch
from both_devices import Place
from compute_examples import cross_entropy
from device_examples import classes, gpt2, language, seeded, unit_rows
from other_device import CPU
from torch import nn
from trained import Trained

from polca.compute.along import mean_curvature, token_curvature
from polca.compute.bases import rotate
from polca.compute.basis import as_subspace
from polca.compute.engines import Projector, project_tokens
from polca.compute.interventions import intervene, knob_effects, weight_vector
from polca.compute.lanczos import lanczos
from polca.compute.operators import (
    MATRICES,
    DifferenceOperator,
    GaussNewtonOperator,
    GradientOperator,
    HessianOperator,
    mean_gradient,
)
from polca.compute.projection import project
from polca.compute.subspace import hessian_subspace
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses
from polca.runs.estimates import estimate_projection, estimate_subspace

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
ROUNDING = {F64: 1e-9, F32: 2e-6, BF16: 3e-2, F16: 5e-3}  # of gradients in the dtype, relative to their size
MAKE = {"texts": lambda at, dtype: language(at, gpt2, dtype), "classes": classes}
AT = Place(CPU, None)


@cache
def losses_of(name, dtype=F64):
    "Losses of a small model in a dtype; those of `classes` are computed in it, too, from inputs in it."
    return MAKE[name](AT, dtype)


@cache
def rows(name):
    return unit_rows(losses_of(name), 4)


@cache
def exact(name):
    losses = losses_of(name)
    return project_tokens(losses, losses.params, rows(name))


def error(found, expected):
    "Relative, in the norm over all entries."
    return float((found.double() - expected).norm() / expected.norm())


def coarser(*dtypes):
    return max(dtypes, key=ROUNDING.__getitem__)


def projected(name, model, directions, engine):
    losses = losses_of(name, model)
    return project_tokens(losses, losses.params, rows(name).to(directions), engine)


WIDE = [(F64, F32), (F32, F64), (F32, F32)]
HALF_MODEL = [(BF16, F32), (BF16, BF16), (F16, F32)]
HALF_DIRECTIONS = [(F32, BF16), (F64, BF16), (F32, F16)]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("model, directions", WIDE + HALF_MODEL, ids=str)
@pytest.mark.parametrize("engine", ["forward", "reverse"])
def test_projections(name, model, directions, engine):
    P = projected(name, model, directions, engine)
    assert P.dtype == directions and error(P, exact(name)) < ROUNDING[coarser(model, directions)]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("model, directions", WIDE + HALF_MODEL + HALF_DIRECTIONS[:1], ids=str)
def test_differences(name, model, directions):
    "They lose half of the digits."
    P = projected(name, model, directions, "difference")
    assert P.dtype == directions and error(P, exact(name)) < 2 * ROUNDING[coarser(model, directions)] ** 0.5


@pytest.mark.parametrize("model, directions", HALF_DIRECTIONS, ids=str)
@pytest.mark.parametrize("engine", ["forward", "reverse", "auto"])
@pytest.mark.filterwarnings("ignore:engine=")
def test_directions_in_half_precision_are_projected_on_or_refused_by_their_dtype(model, directions, engine):
    try:
        P = projected("texts", model, directions, engine)
    except ValueError as refused:
        assert str(directions) in str(refused)
    else:
        assert error(P, exact("texts")) < ROUNDING[directions]


@cache
def products(kind):
    losses = losses_of("texts")
    return kind(losses, losses.params) @ rows("texts")[0]


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator, GradientOperator])
@pytest.mark.parametrize("model, vector", WIDE[:2] + HALF_MODEL[:2] + HALF_DIRECTIONS[:1], ids=str)
def test_products_with_matrices(kind, model, vector):
    losses = losses_of("texts", model)
    product = kind(losses, losses.params) @ rows("texts")[0].to(vector)
    assert product.dtype == model and error(product, products(kind)) < ROUNDING[coarser(model, vector)]


@pytest.mark.parametrize("model, vector", WIDE[:2] + HALF_MODEL + HALF_DIRECTIONS[:1], ids=str)
def test_products_by_differences(model, vector):
    "Of weights in half precision, they are computed in float32."
    losses = losses_of("texts", model)
    product = DifferenceOperator(losses, losses.params) @ rows("texts")[0].to(vector)
    assert product.dtype.itemsize >= 4
    assert error(product, products(HessianOperator)) < max(ROUNDING[coarser(model, vector)], 1e-3)


@cache
def curvature(model, directions):
    "Of the mean loss and of every token, along two directions."
    losses = losses_of("texts", model)
    B = rows("texts")[:2].to(directions)
    return mean_curvature(HessianOperator(losses, losses.params), B), token_curvature(losses, losses.params, B)


@pytest.mark.parametrize("model, directions", WIDE[:2] + HALF_MODEL[:2] + HALF_DIRECTIONS[:1], ids=str)
def test_curvature_along_directions(model, directions):
    for found, expected in zip(curvature(model, directions), curvature(F64, F64)):
        assert error(found, expected) < ROUNDING[coarser(model, directions)]


def test_products_are_taken_into_the_dtype_of_the_krylov_space():
    values = {}
    for model in (F64, F32):
        losses = losses_of("texts", model)
        H = HessianOperator(losses, losses.params)
        for space in (F64, F32):
            pairs = lanczos(H.__matmul__, len(rows("texts")[0]), dtype=space, strict=True)
            assert pairs.vectors.dtype == space
            values[model, space] = pairs.values[0]
    np.testing.assert_allclose(list(values.values()), values[F64, F64], rtol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


def run_of(trained, dtype):
    "A store, a basis in float32 and losses in `dtype`."
    losses = TokenLosses(trained.network(dtype), [trained.batch(dtype)], cross_entropy)
    return trained.store, as_subspace(unit_rows(losses, 3, F32), losses.params), losses


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_a_run_with_a_model_in_half_precision(trained, dtype):
    runs = [run_of(trained, F64), run_of(trained, dtype)]
    reference, data = (project(*run, [0, 50, 100], nodes=1, progress=False) for run in runs)
    for name in ("loss", "gradient", "path_gradient"):
        assert error(torch.tensor(data[name].values), torch.tensor(reference[name].values)) < ROUNDING[dtype]
    _, basis, losses = runs[1]
    P = project_tokens(losses, losses.params, basis.directions)
    turned = [rotate(basis, values).directions for values in (P.to(dtype), P.to(dtype).float().numpy())]
    torch.testing.assert_close(*turned)
    moved = [intervene(run[2], run[2].params, weight_vector(run[1], [1, 2, 3]), (0.5,)) for run in runs]
    assert abs(moved[0]["ahead"] - moved[1]["ahead"]).max() < ROUNDING[dtype] * moved[0]["ahead"].max()
    assert len(knob_effects(losses, losses.params, basis, [1, 2, 3], np.arange(60.0), draws=1)) == 3


def test_estimates_for_a_model_in_half_precision_are_of_what_is_made_of_it(tmp_path):
    "Its directions are in float32, and are found there, where float16 would be too short."
    losses = losses_of("texts", F16)
    store = Checkpoints(tmp_path)
    for step in (0, 1):
        store.save(step, {name: (1 + step / 10) * p for name, p in losses.params.items()})
    basis = hessian_subspace(store, losses, [0, 1], progress=False)
    assert estimate_subspace(store, losses, [0, 1]).disk == basis.directions.nbytes
    assert estimate_projection(store, losses, [0, 1], 2).disk == 2 * (len(losses) * 5 * 4 + 1000)


@pytest.mark.parametrize("kind", MATRICES.values())
def test_a_model_that_runs_in_half_precision_alone_is_refused_for_second_derivatives(trained, kind):
    "Its inputs are in half precision, and the weights that derivatives are looked at with in float32."
    losses = run_of(trained, BF16)[2]
    with pytest.raises(ValueError, match=r"this model in torch.bfloat16 does not run .* with \.float\(\)"):
        kind(losses, losses.params)


def autocast():
    return torch.autocast("cpu", dtype=BF16)


def test_autocast_is_refused_wherever_a_model_is_evaluated():
    losses = losses_of("texts", F32)
    params = losses.params
    B = rows("texts").float()
    projector = Projector(losses, params, B, "forward")
    H = HessianOperator(losses, params)
    calls = [
        lambda: losses(params),
        lambda: projector(params),
        lambda: H @ B[0],
        lambda: mean_gradient(losses, params),
        lambda: token_curvature(losses, params, B),
        lambda: lanczos(lambda v: v, 5),
        lambda: language(AT, gpt2, F32),
        *(
            lambda engine=engine: project_tokens(losses, params, B, engine)
            for engine in ("forward", "reverse", "difference")
        ),
        *(lambda kind=kind: kind(losses, params) for kind in MATRICES.values()),
    ]
    for call in calls:
        with autocast(), pytest.raises(ValueError, match="torch.autocast is on for cpu, .* outside of its block"):
            call()
    with autocast(), torch.autocast("cpu", enabled=False):
        torch.testing.assert_close(projector(params)[1], projected("texts", F32, F32, "forward"))


class Autocasting(nn.Module):
    "A model that computes in half precision inside of its forward, whatever its weights are in."

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        with autocast():
            return self.model(**inputs)


@pytest.mark.parametrize("engine", ["forward", "reverse", "auto"])
@pytest.mark.filterwarnings("ignore:engine=")
def test_a_model_that_autocasts_is_projected_or_refused_by_what_it_does(engine):
    losses = language(AT, lambda: Autocasting(gpt2()), F32)
    try:
        P = project_tokens(losses, losses.params, rows("texts").float(), engine)
    except ValueError as refused:
        assert "autocast" in str(refused)
    else:
        assert error(P, exact("texts")) < ROUNDING[BF16]


def steep(dtype):
    "Losses of a network whose gradients are over 65504, where its weights and logits are not."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5, bias=False))
    with torch.no_grad():
        net[0].weight.mul_(2e-4)
        net[1].weight.copy_(5e4 * torch.sign(seeded(5, 6)))
    batch = {"input": torch.arange(2)[None], "labels": torch.tensor([[0, 3]])}
    return TokenLosses(net.to(dtype).eval(), [batch])


def test_gradients_over_the_end_of_float16_are_refused_by_that():
    wide, half = steep(F32), steep(F16)
    assert float(wide(wide.params).max()) < 100 and torch.isfinite(half(half.params)).all()
    assert float(mean_gradient(wide, wide.params).abs().max()) > 65504
    for call in (mean_gradient, HessianOperator):
        with pytest.raises(ValueError, match=r"is not finite in 0.weight.*where float16 ends.*model\.float\(\)"):
            call(half, half.params)
    texts = losses_of("texts", F16)  # whose gradients are small, and the second derivatives of its LayerNorms are not
    with pytest.raises(ValueError, match="where float16 ends"):
        HessianOperator(texts, texts.params) @ rows("texts")[0]


def test_differences_over_the_end_of_float16_are_refused_by_that():
    half = steep(F16)
    with pytest.raises(ValueError, match="where float16 ends"):
        project_tokens(half, half.params, unit_rows(half, 3, F32), "difference")


@pytest.mark.parametrize("engine", ["forward", "reverse", "auto"])
@pytest.mark.filterwarnings("ignore:engine=")
def test_projections_over_the_end_of_float16_are_refused_by_that(engine):
    half = steep(F16)
    with pytest.raises(ValueError, match="float16"):
        project_tokens(half, half.params, unit_rows(half, 3, F32), engine)
