"""Products with the Hessian and its relatives: of a transformer, at the edges, and what is refused."""

from functools import partial

import pytest
import torch
from compute_examples import FusedSquare, FusedSquareTwice, Square, cross_entropy, dense_hessian, small_losses
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

from polca.compute.operators import (
    DifferenceOperator,
    GaussNewtonOperator,
    GradientOperator,
    HessianOperator,
    SharedOperator,
    rehearse,
)
from polca.core.losses import TokenLosses, flatten, n_parameters, unflatten
from polca.core.memory import split_batches

EXACT = [HessianOperator, GaussNewtonOperator, GradientOperator]


@pytest.fixture(scope="module")
def losses():
    return small_losses()


@pytest.fixture(scope="module")
def texts():
    "A transformer in float64, and the ids of five texts."
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13, n_positions=9, n_embd=8, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config).double().eval(), [torch.randint(0, 13, (n,)) for n in (9, 4, 6, 3, 8)]


@pytest.fixture(scope="module")
def single(texts):
    "The texts one by one."
    model, ids = texts
    return TokenLosses(model, [{"input_ids": t[None], "labels": t[None]} for t in ids])


@pytest.fixture(scope="module")
def ragged(texts):
    "The texts in two padded batches."
    model, ids = texts

    def padded(ids):
        rows = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in ids], batch_first=True)
        return {"input_ids": rows, "attention_mask": mask, "labels": rows.masked_fill(mask == 0, -100)}

    return TokenLosses(model, [padded(ids[:2]), padded(ids[2:])])


@pytest.fixture(scope="module")
def w(single):
    return torch.randn(n_parameters(single.params), generator=torch.Generator().manual_seed(1)).double()


def test_hessian_products_of_a_transformer_are_differences_of_gradients(ragged, w):
    h = 1e-7  # no second derivative can spoil these
    theta = flatten(ragged.params)
    ahead, behind = (
        HessianOperator(ragged, unflatten(theta + sign * h * w, ragged.params)).gradient for sign in (1, -1)
    )
    product = HessianOperator(ragged, ragged.params) @ w
    torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(DifferenceOperator(ragged, ragged.params) @ w, product, rtol=1e-4, atol=1e-6)


def test_the_second_moment_of_a_transformer_is_that_of_all_gradients(ragged, single, w):
    def all_losses(vector):
        params = unflatten(vector, single.params)
        return torch.cat([single.batch(i, params) for i in range(len(single.batches))])

    G = torch.func.jacrev(all_losses)(flatten(single.params))
    assert len(G) == 25
    product = GradientOperator(ragged, ragged.params) @ w
    torch.testing.assert_close(product, G.T @ (G @ w) / len(G), rtol=1e-9, atol=1e-12)


def test_the_gauss_newton_matrix_of_a_transformer_is_that_of_all_logits(texts, ragged, single, w):
    model, ids = texts

    def all_logits(vector):
        params = unflatten(vector, single.params)
        outputs = [torch.func.functional_call(model, params, (t[None],)) for t in ids]
        return torch.cat([out.logits[0, :-1] for out in outputs])

    theta = flatten(single.params)
    with sdpa_kernel(SDPBackend.MATH):
        J = torch.func.jacrev(all_logits)(theta)
        p = all_logits(theta).softmax(1)
    assert J.shape == (25, 13, len(theta))
    moved = J @ w
    expected = torch.einsum("xcj,xc->j", J, p * (moved - (p * moved).sum(1, keepdim=True))) / len(J)
    torch.testing.assert_close(GaussNewtonOperator(ragged, ragged.params) @ w, expected, rtol=1e-9, atol=1e-12)


def squared(kernel=None):
    "A small network that squares its activations, in plain operations or by a kernel, on the same data."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Square(kernel), nn.Linear(6, 3)).double().eval()
    batch = {"x": torch.randn(40, 4).double(), "y": torch.randint(0, 3, (40,))}
    return TokenLosses(model, [batch], loss=cross_entropy)


@pytest.fixture(scope="module")
def u():
    return torch.randn(51, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("kind", [GaussNewtonOperator, GradientOperator])
def test_the_relatives_take_the_derivative_of_a_backward_pass_in_what_comes_in_alone(kind, u):
    plain = squared()
    fused = squared(FusedSquare)
    torch.testing.assert_close(kind(fused, fused.params) @ u, kind(plain, plain.params) @ u)


@pytest.mark.parametrize("kind", EXACT)
def test_a_backward_pass_without_any_derivative_is_refused(kind):
    fused = squared(FusedSquareTwice)
    with pytest.raises(ValueError, match=r"1 \(Square\).*matrix='difference'"):
        kind(fused, fused.params)


def test_the_operator_of_differences_keeps_its_step_from_checkpoint_to_checkpoint(u):
    fused = squared(FusedSquareTwice)
    operator = DifferenceOperator(fused, fused.params)
    moved = {n: p + 0.1 for n, p in fused.params.items()}
    assert operator.plan().at(moved).step == operator.at(moved).step == operator.step
    assert torch.equal(operator.plan().at(fused.params) @ u, operator @ u)


def test_a_gradient_that_is_not_finite_is_refused_by_parameters_and_batch(losses):
    single_precision = TokenLosses(
        small_losses().model.float(),
        [{**b, "x": b["x"].float()} for b in losses.batches],
        loss=cross_entropy,
    )
    broken = {n: p * float("nan") for n, p in single_precision.params.items()}
    with pytest.raises(ValueError, match="not finite in 0.weight, 0.bias, 2.weight and others, on batch 0"):
        HessianOperator(single_precision, broken)


def test_of_several_processes_the_one_that_fails_says_which_batches_it_has(losses):
    broken = {n: p.clone() for n, p in losses.params.items()}
    broken["2.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="in process 0, whose batch 0 is from batch 0 of all"):
        SharedOperator(HessianOperator, losses, broken)


class Steep(nn.Module):
    "A loss with a finite gradient and no finite second derivative."

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.b = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return (self.a.abs() ** 1.5 + self.b**2) * x


def test_a_product_that_is_not_finite_is_refused():
    steep = TokenLosses(Steep().eval(), [{"x": torch.ones(2)}], loss=lambda m, b: m(b["x"]))
    with pytest.raises(ValueError, match="product is not finite in a, on batch 0"):
        HessianOperator(steep, steep.params) @ torch.ones(4)


def test_a_vector_of_another_length_is_refused(losses):
    with pytest.raises(ValueError, match="the model has 43 weights"):
        HessianOperator(losses, losses.params) @ torch.ones(3).double()


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x)


def linear_losses(losses, loss):
    return TokenLosses(Linear().double().eval(), losses.batches, loss=loss)


def test_gauss_newton_refuses_a_loss_that_calls_the_model_twice(losses):
    twice = linear_losses(losses, lambda m, b: (m(b["x"]) + m(2 * b["x"])).square().sum(1))
    with pytest.raises(ValueError, match="calls the model 2 times"):
        GaussNewtonOperator(twice, twice.params)


def test_gauss_newton_refuses_a_loss_that_sees_the_weights(losses):
    weighed = linear_losses(losses, lambda m, b: m(b["x"]).square().sum(1) + m.out.bias.square().sum())
    with pytest.raises(ValueError, match="another way"):
        GaussNewtonOperator(weighed, weighed.params)


def test_gauss_newton_of_a_loss_that_is_linear_in_the_outputs_is_zero(losses):
    straight = linear_losses(losses, lambda m, b: m(b["x"]).sum(1))
    assert not (GaussNewtonOperator(straight, straight.params) @ torch.ones(15).double()).any()


@pytest.mark.parametrize("memory", ["4GiB", "tight"])
def test_gradients_that_are_switched_off_make_no_difference(losses, memory):
    v = torch.randn(43, generator=torch.Generator().manual_seed(1)).double()
    expected = dense_hessian(losses) @ v
    if memory == "tight":
        whole = HessianOperator(losses, losses.params)
        memory = int(0.9 * sum(split_batches(losses, losses.params, partial(rehearse, whole), 2**30)[1]))
    with torch.no_grad():
        torch.testing.assert_close(HessianOperator(losses, losses.params, memory) @ v, expected)
