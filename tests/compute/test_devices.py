"""Engines, matrices and eigenvectors with model, batches and directions on another device than the CPU."""

import numpy as np
import pytest
import torch
from both_devices import Place, both_devices
from compute_examples import FusedSquare, Square, cross_entropy
from device_examples import Places, addition, classes, gpt2, language, llama, neox, seeded, unit_rows
from other_device import CPU, OTHER, OtherDevice
from torch import nn

from polca.compute.along import mean_curvature, token_curvature
from polca.compute.derivatives import has_kinks
from polca.compute.engines import Projector, choose_engine, count_operations, project_tokens
from polca.compute.forward import ForwardEngine, OutputLayer, forward_projection
from polca.compute.lanczos import SharedRows, dots, lanczos, norm, orthogonalise
from polca.compute.layers import last_matrix
from polca.compute.operators import (
    MATRICES,
    DifferenceOperator,
    GradientOperator,
    HessianOperator,
    MeanOperator,
    SharedOperator,
    mean_gradient,
)
from polca.compute.protocol import Part, cut_directions
from polca.core.losses import TokenLosses, cut_targets, fingerprint, raises
from polca.core.memory import PeakMemory, SavedMemory, part_of


@both_devices
def test_losses_of_tokens(at):
    every = [language(at, gpt2), language(at, llama), language(at, neox), addition(at), classes(at)]
    some = [(losses(losses.params), losses.only(0)(losses.params), fingerprint(losses.batches)) for losses in every]
    shifted = every[-1].at_buffers({"shift": torch.ones(3)})  # as a checkpoint has it, on the CPU
    text = {name: value[:1] for name, value in every[1].batches[0].items()}
    pieces = TokenLosses(every[1].model, cut_targets(every[1].model, text, 3))
    return some, shifted(shifted.params), [losses.tokens for losses in every], pieces(pieces.params), pieces.batches


@both_devices
def test_memory(at):
    with PeakMemory() as peak, SavedMemory(2**20) as saved:
        x = at(seeded(50, 20)).requires_grad_()
        (x.square() @ torch.ones_like(x).T).relu_().sum().backward()
    losses = language(at, gpt2)
    own, first = part_of(losses, losses.params, 2, 3)  # in more parts than batches
    return x.grad, peak.bytes, saved.bytes, own(losses.params), own.tokens, first


@both_devices
def test_norm_dots_and_orthogonalise(at):
    rows = torch.linalg.qr(seeded(100_000, 3)).Q.T.contiguous()
    v = at(seeded(100_000, seed=1))
    own = at(rows)
    exact = dots(own.float(), v.float(), exact=True)
    rest = orthogonalise(v, rows[:2], own[2:], SharedRows(own[:1], 1))  # a basis may be kept on the CPU
    return norm(v), dots(own, v), dots(rows, v), exact, rest, orthogonalise(v.float(), rows, exact=True)


def dense(at, values):
    "Products with a symmetric matrix of the eigenvalues `values`."
    turn = torch.linalg.qr(seeded(len(values), len(values))).Q
    A = at(turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.T)
    return lambda v: A.to(v.dtype) @ v


@both_devices
def test_eigenvectors(at):
    H = dense(at, [9.0, 9.0, 7.0, -8.0, *np.linspace(0, 1, 36)])
    on = {"device": at.device, "dtype": torch.float64}
    first = lanczos(H, 40, 3, **on)  # looks for the repeated one
    against = first.vectors[:2]
    small = lanczos(H, 40, 2, against=against.cpu(), memory=40 * 8 * 2 * 25, **on)  # restarts
    shared = lanczos(H, 40, 1, against=SharedRows(against, 2), start=seeded(40), which="magnitude", **on)
    half = lanczos(H, 40, 2, against=against.float(), device=at.device)
    on_cpu = dense(Place(CPU, at.folder), [3.0, 1.0, *np.linspace(0, 1, 20)])
    brought = lanczos(lambda v: on_cpu(v.cpu()), 22, 2, **on)  # of products that come on the CPU
    return first, small, shared, half.values, brought


@both_devices
def test_matrices(at):
    losses = language(at, gpt2)
    params = losses.params
    v = at(unit_rows(losses, 1)[0])
    H = {name: kind(losses, params) for name, kind in MATRICES.items()}
    found = {name: operator @ v for name, operator in H.items()}
    moved = {n: 1.1 * p for n, p in params.items()}
    again = [H[name].plan().at(moved) @ v for name in ("hessian", "difference")]
    return found, again, mean_gradient(losses, params), H["hessian"].gradient


def with_little_memory(make):
    "`make(memory)` for the first of growing memories, in bytes, that it does not refuse."
    for memory in (int(2_000 * 1.25**i) for i in range(30)):
        try:
            return make(memory)
        except ValueError as refused:
            assert "too small" in str(refused)
    raise AssertionError("no memory is enough")


@both_devices
def test_batches_that_are_cut(at):
    losses = classes(at)
    params = losses.params
    H = with_little_memory(lambda memory: HessianOperator(losses, params, memory))
    projector = with_little_memory(
        lambda memory: Projector(losses, params, at(unit_rows(losses, 4)), "forward", memory)
    )
    assert len(H.batches.losses.batches) > 2 and len(projector.losses.batches) > 2  # of two that were given
    last = H.batches.given_batch(len(H.batches.losses.batches) - 1)
    return H @ at(unit_rows(losses, 1)[0]), last, projector(params)


@both_devices
def test_means_and_shares_of_matrices(at):
    losses = classes(at)
    v = at(unit_rows(losses, 1)[0])
    H = HessianOperator(losses, losses.params)
    mean = MeanOperator([H, H.at(losses.params, {"shift": torch.ones(3)})])
    shared = SharedOperator(GradientOperator, losses, losses.params)
    return mean @ v, shared @ v, shared.plan().at(losses.params) @ v


@both_devices
def test_a_part_that_cannot_be_differentiated_twice(at):
    torch.manual_seed(0)
    batch = at({"x": seeded(5, 4).float(), "y": torch.arange(5) % 3})

    def losses(activation):
        net = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3)).eval()
        return TokenLosses(at(net), [batch], cross_entropy)

    fused = losses(Square(FusedSquare))
    said = raises(ValueError, "Square", HessianOperator, fused, fused.params)
    kinks = losses(nn.ReLU())
    assert has_kinks(kinks, kinks.params)
    v = at(unit_rows(kinks, 1, torch.float32)[0])
    difference = DifferenceOperator(fused, fused.params) @ v
    return said.split("length")[0], difference, HessianOperator(kinks, kinks.params) @ v


@both_devices
def test_curvature_along_directions(at):
    losses = language(at, gpt2)
    B = at(unit_rows(losses, 1))
    H = HessianOperator(losses, losses.params)
    return mean_curvature(H, B), token_curvature(losses, losses.params, B)


def projections(losses, at, engine):
    blocks = at(list(unit_rows(losses, 3).split([2, 1])))
    return Projector(losses, losses.params, [*blocks, torch.zeros_like(blocks[1])], engine)(losses.params)


@both_devices
def test_forward(at):
    return [projections(losses, at, "forward") for losses in (language(at, llama), addition(at), classes(at))]


@both_devices
def test_directions_that_are_written_into(at):
    losses = classes(at)
    B = at(unit_rows(losses, 2))
    found = []
    for engine in ("forward", "reverse", "difference"):
        projector = Projector(losses, losses.params, B, engine)
        B.mul_(-1)
        found.append(projector({n: 1.1 * p for n, p in losses.params.items()}))
    return found


@both_devices
def test_the_parts_of_the_forward_engine(at):
    losses = language(at, neox)
    params = losses.params
    slices = cut_directions([at(unit_rows(losses, 3))], params)
    engine = ForwardEngine(losses, params, slices)
    whole = engine.project(Part(losses, 1, 8), params, first=True)
    return whole, [
        forward_projection(losses, 0, params, slices, OutputLayer(last), 2)
        for last in (None, last_matrix(losses, params))
    ]


@both_devices
def test_reverse(at):
    every = [language(at, gpt2), language(at, neox), language(at, Places), classes(at)]
    return [projections(losses, at, "reverse") for losses in every]


@both_devices
def test_reverse_with_many_directions(at):
    losses = language(at, gpt2)
    return project_tokens(losses, losses.params, at(unit_rows(losses, 40)), "reverse")


@both_devices
def test_difference(at):
    return [projections(losses, at, "difference") for losses in (language(at, gpt2), classes(at))]


@pytest.mark.parametrize("engine", ["forward", "reverse"])
def test_directions_on_the_cpu_are_projected_on_or_refused_by_that(engine, tmp_path):
    with OtherDevice():
        losses = language(Place(OTHER, tmp_path), gpt2)
        try:
            P = project_tokens(losses, losses.params, unit_rows(losses, 3), engine)
        except ValueError as refused:
            assert "cpu" in str(refused)
        else:
            assert P.shape == (len(losses), 3)


@both_devices
def test_the_choice_of_an_engine(at):
    losses = language(at, gpt2)
    return (
        choose_engine(losses, 4),
        count_operations(losses, 4),
        project_tokens(losses, losses.params, at(unit_rows(losses, 4))),
    )
