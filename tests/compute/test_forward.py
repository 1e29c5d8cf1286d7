"""The forward engine where what was found at one checkpoint does not hold at the next, or after a plan is made."""

import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.func import jacrev

from polca.compute import engines, forward
from polca.compute.checksum import UnseenError, _a_tenth
from polca.compute.engines import Projector
from polca.compute.forward import ForwardEngine
from polca.core.losses import TokenLosses, flatten, n_parameters, next_token_loss, unflatten
from polca.core.memory import n_examples, tells_sequences


class Small(nn.Module):
    "Token by token, with a buffer that its output is multiplied by."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).tanh()) * self.scale


def in_order(model, batch):
    return next_token_loss(model, batch).sort().values


def hinged(model, batch):
    losses = next_token_loss(model, batch)
    return losses + 0.5 * torch.relu(losses.roll(1) - 4)


def small_losses(loss=None, texts=3):
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (texts, 6))
    return TokenLosses(Small().eval(), [{"input_ids": ids, "labels": ids}], loss)


def directions(losses):
    rows = torch.randn(3, n_parameters(losses.params), generator=torch.Generator().manual_seed(1))
    return rows / rows.norm(dim=1, keepdim=True)


def by_jacobian(losses, params, rows):
    return jacrev(lambda theta: losses.batch(0, unflatten(theta, params)))(flatten(params)) @ rows.T


@pytest.mark.parametrize("loss", [in_order, hinged], ids=lambda loss: loss.__name__)
def test_tokens_that_change_their_rows_between_checkpoints(loss):
    losses = small_losses(loss)
    rows = directions(losses)
    projector = Projector(losses, losses.params, rows, "forward")
    for factor in (1, 1, 9):  # the third call is not held against the check sum
        params = {name: factor * p for name, p in losses.params.items()}
        torch.testing.assert_close(projector(params)[1], by_jacobian(losses, params, rows), rtol=1e-4, atol=1e-6)


def replaced_buffer(model):
    model.scale = torch.tensor(2.0)


def written_buffer(model):
    model.scale.fill_(2.0)


def written_data(model):
    for p in model.parameters():
        p.data.mul_(1.5)


@pytest.mark.parametrize("change", [replaced_buffer, written_buffer, written_data], ids=lambda change: change.__name__)
def test_a_graph_that_was_held_is_not_taken_after_a_change(change):
    losses = small_losses(texts=1)
    params = losses.params
    rows = directions(losses)
    projector = Projector(losses, params, rows, "forward")
    change(losses.model)
    loss, P = projector(params)
    torch.testing.assert_close(loss, losses(params))
    torch.testing.assert_close(P, by_jacobian(losses, params, rows), rtol=1e-4, atol=1e-6)


class Attending(nn.Module):
    "Attention of grouped heads, with a mask that is learned, or one of what each position sees, or causal."

    def __init__(self, mask=None):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.q = nn.Linear(8, 8, bias=False)
        self.k = nn.Linear(8, 4)
        self.v = nn.Linear(8, 4)
        self.head = nn.Linear(8, 7)
        if mask == "learned":
            self.bias = nn.Parameter(torch.randn(6, 6))
        if mask == "seen":  # nothing, at the second position
            self.register_buffer("bias", torch.ones(6, 6).tril().bool() & (torch.arange(6) != 1)[:, None])

    def forward(self, input_ids):
        h = self.embed(input_ids)
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q(h), self.k(h), self.v(h)))
        mask = getattr(self, "bias", None)
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        return self.head(out.transpose(1, 2).flatten(2) + h)


@pytest.mark.parametrize("frozen", [(), ("k.weight", "k.bias"), ("embed.weight", "q.weight", "k.weight", "v.weight")])
@pytest.mark.parametrize("mask", [None, "learned", "seen"])
def test_attention_with_promised_gradients(mask, frozen):
    torch.manual_seed(0)
    model = Attending(mask).double().eval()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    ids = torch.randint(0, 7, (3, 6))
    losses = TokenLosses(model, [{"input_ids": ids, "labels": ids}])
    rows = directions(losses).double()
    loss, P = Projector(losses, losses.params, rows, "forward")(losses.params)
    torch.testing.assert_close(loss, losses(losses.params))
    torch.testing.assert_close(P, by_jacobian(losses, losses.params, rows), rtol=1e-8, atol=1e-10)


def written_directions(rows):
    rows.mul_(2)


def written_through_numpy(rows):
    rows.numpy()[:] *= 2


@pytest.mark.parametrize("change", [written_directions, written_through_numpy], ids=lambda change: change.__name__)
def test_directions_that_are_written_into_before_the_first_call(change):
    losses = small_losses(texts=1)
    params = losses.params
    rows = directions(losses)
    projector = Projector(losses, params, rows, "forward")
    change(rows)
    torch.testing.assert_close(projector(params)[1], by_jacobian(losses, params, rows), rtol=1e-4, atol=1e-6)


class Wide(nn.Module):
    "A vocabulary that is wider than the rest; `keeps`: of which logits can be left out."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(500, 6)
        self.out = nn.Linear(6, 500)

    def forward(self, input_ids):
        return self.out(self.embed(input_ids).cumsum(1))


class WideKeeping(Wide):
    def forward(self, input_ids, logits_to_keep=slice(None)):
        return self.out(self.embed(input_ids).cumsum(1)[:, logits_to_keep])


def cut_projector(losses, rows, engine):
    "A projector with just so little memory that the targets of a sequence are cut."
    for memory in (int(2**22 * 0.9**i) for i in range(40)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            projector = Projector(losses, losses.params, rows, engine, memory)
        if any("its targets are cut into" in str(w.message) for w in caught):
            return projector
    raise AssertionError("targets are never cut")


@pytest.mark.parametrize("engine, kind", [("forward", WideKeeping), ("difference", WideKeeping), ("difference", Wide)])
def test_targets_are_cut_where_a_sequence_does_not_fit(engine, kind):
    torch.manual_seed(0)
    ids = torch.randint(0, 500, (3, 60))
    labels = ids.masked_fill(torch.arange(60) < torch.tensor([[40], [0], [60]]), -100)  # few, all, and no targets
    losses = TokenLosses(kind().double().eval(), [{"input_ids": ids, "labels": labels}])
    params = losses.params
    rows = torch.randn(2, n_parameters(params), dtype=torch.float64)
    whole = Projector(losses, params, rows, engine)(params)
    projector = cut_projector(losses, rows, engine)
    assert len(projector.losses.batches) > 3
    for _ in range(2):
        torch.testing.assert_close(projector(params), whole, rtol=1e-6, atol=1e-8)


def test_the_engine_that_takes_sequences_whole_refuses_to_cut_them():
    ids = torch.randint(0, 500, (1, 60))
    losses = TokenLosses(WideKeeping().eval(), [{"input_ids": ids, "labels": ids}])
    rows = torch.eye(2, n_parameters(losses.params))
    with pytest.raises(ValueError, match="too small"):
        Projector(losses, losses.params, rows, "reverse", memory=20_000)


class Plain(nn.Module):
    "Whose `inner` network is given as a function of the model and the embedded ids."

    def __init__(self, inner=lambda model, h: model.mid(h).tanh()):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.inner = inner

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.inner(self, self.embed(input_ids)))


class PlainKeeping(Plain):
    "Which gives the logits that are asked for."

    def forward(self, input_ids, logits_to_keep: slice | torch.Tensor = slice(None)):
        return self.head(self.inner(self, self.embed(input_ids))[:, logits_to_keep])


def texts(n=1, positions=6, seed=0, dtype=torch.long):
    ids = torch.randint(0, 7, (n, positions), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.to(dtype)}


def by_backward(losses, params, rows):
    "One back-propagation after the other, since not all models can be given to `jacrev`."
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss = losses.batch(0, leaves)
    gradients = [torch.autograd.grad(one, list(leaves.values()), retain_graph=True) for one in loss]
    return torch.stack([rows @ flatten(dict(zip(leaves, gradient))) for gradient in gradients])


def assert_projected(model, batches, K=3):
    "That P of each batch of `model` is that of its Jacobian."
    losses = TokenLosses(model.double().eval(), batches)
    params = losses.params
    rows = torch.randn(K, n_parameters(params), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, P = Projector(losses, params, rows, "forward")(params)
    torch.testing.assert_close(loss, losses(params))
    expected = [by_backward(losses.only(i), params, rows) for i in range(len(batches))]
    torch.testing.assert_close(P, torch.cat(expected), rtol=1e-8, atol=1e-10)


def recomputed(model, h):
    return torch.utils.checkpoint.checkpoint(lambda h: torch.tanh(model.mid(h)), h, use_reentrant=False)


def mapped(model, h):
    return torch.vmap(model.mid)(h).tanh()


def one_key_for_all_heads(model, h):
    q, k, v = (part(h).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (model.mid, model.mid.forward, torch.sin))
    out = nn.functional.scaled_dot_product_attention(q, k[:, :1], v[:, :1], is_causal=True)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("inner", [recomputed, mapped, one_key_for_all_heads], ids=lambda inner: inner.__name__)
def test_networks_that_promises_are_not_made_for(inner):
    assert_projected(Plain(inner), [texts(2)])


@pytest.mark.parametrize("K", [0, 1, 2])
def test_few_directions_for_a_single_text(K):
    assert_projected(Plain(), [texts()], K)


def test_a_hook_of_the_user_on_the_output_layer():
    model = Plain()
    model.head.register_forward_hook(lambda module, inputs, out: 2 * out)
    assert_projected(model, [texts(2)])


def test_batches_with_different_columns():
    assert_projected(Plain(), [texts(), {"attention_mask": torch.ones(1, 6).long(), **texts(seed=3)}])


def test_labels_of_bytes():
    assert_projected(Plain(), [texts(2, dtype=torch.uint8)])


def test_logits_that_are_not_finite_where_nothing_is_predicted():
    class Ending(Plain):
        def forward(self, input_ids):
            logits = super().forward(input_ids)
            return logits.index_fill(1, torch.tensor([input_ids.shape[1] - 1]), -torch.inf)

    assert_projected(Ending(), [texts(2, 20)])


def test_without_gradients_around_it():
    with torch.no_grad():
        losses = small_losses(texts=1)
        rows = directions(losses)
        P = Projector(losses, losses.params, rows, "forward")(losses.params)[1]
    torch.testing.assert_close(P, by_jacobian(losses, losses.params, rows), rtol=1e-4, atol=1e-6)


def test_a_graph_is_not_taken_for_that_of_tensors_that_are_gone():
    losses = TokenLosses(Plain().double().eval(), [texts()])
    rows = directions(losses).double()
    for i in range(20):
        projector = Projector(losses, {n: p + 1e-9 * i for n, p in losses.params.items()}, rows, "forward")
        params = {n: p + 1e-9 * (i + 1) for n, p in losses.params.items()}
        expected = by_jacobian(losses, params, rows)
        torch.testing.assert_close(projector(params)[1], expected, rtol=1e-12, atol=1e-14)


def test_one_target_of_a_long_text_is_cut_out():
    torch.manual_seed(0)
    ids = torch.randint(0, 500, (1, 60))
    for targets in (1, 2):
        labels = ids.masked_fill(torch.arange(60) < 60 - targets, -100)
        losses = TokenLosses(WideKeeping().double().eval(), [{"input_ids": ids, "labels": labels}])
        rows = torch.randn(2, n_parameters(losses.params), dtype=torch.float64)
        whole = Projector(losses, losses.params, rows, "forward")(losses.params)
        projector = cut_projector(losses, rows, "forward")
        assert projector.losses.batches[0]["logits_to_keep"].tolist() == list(range(59 - targets, 59))
        torch.testing.assert_close(projector(losses.params), whole)


def test_the_other_batches_keep_to_the_memory_where_one_is_cut():
    torch.manual_seed(0)
    ids = torch.randint(0, 500, (20, 30))
    long = torch.randint(0, 500, (1, 200))
    labels = ids.masked_fill(torch.arange(20)[:, None] == 0, -100)  # the first has no targets
    batches = [{"input_ids": long, "labels": long}, {"input_ids": ids, "labels": labels}]
    losses = TokenLosses(WideKeeping().eval(), batches)
    projector = cut_projector(losses, torch.randn(1, n_parameters(losses.params)), "forward")
    of_texts = sum(n_examples(batch) for batch in projector.losses.batches if "logits_to_keep" not in batch)
    assert of_texts == 20 and tells_sequences(projector.losses)


def uneven_texts(targets):
    "Texts with so many targets each."
    batch = texts(len(targets))
    last = torch.arange(6) >= 6 - torch.tensor(targets)[:, None]
    return {**batch, "labels": batch["labels"].masked_fill(~last, -100)}


@pytest.mark.parametrize("targets", [(2, 5, 3), (0, 3), (3, 0), (4, 4, 4)])
def test_texts_of_uneven_targets(targets):
    assert_projected(Plain(), [uneven_texts(targets)])
    assert_projected(Plain(), [uneven_texts(targets[::-1]), uneven_texts(targets)])


class Coupled(Plain):
    "Each text sees the mean of all."

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, input_ids):
        h = self.inner(self, self.embed(input_ids))
        return self.head(h + self.seen(h.mean(0)))


@pytest.mark.parametrize("seen", [torch.sin, lambda mean: mean - mean.detach()], ids=["value", "derivative"])
def test_texts_that_depend_on_each_other(seen):
    assert_projected(Coupled(seen), [uneven_texts((5, 5, 3))])


def test_texts_that_depend_on_each_other_are_all_held_against_the_check_sum():
    losses = TokenLosses(Coupled(torch.sin).double().eval(), [texts(20)])
    rows = directions(losses).double()
    projector = Projector(losses, losses.params, rows, "forward")
    for factor in (1, 2):  # the second call is held against a tenth of the texts first
        params = {name: factor * p for name, p in losses.params.items()}
        torch.testing.assert_close(projector(params)[1], by_backward(losses, params, rows), rtol=1e-8, atol=1e-10)


def test_a_tenth_of_the_texts_shows_what_an_engine_does_not_see(monkeypatch):
    losses = TokenLosses(Plain().double().eval(), [texts(20)])
    rows = directions(losses).double()
    projector = Projector(losses, losses.params, rows, "forward")
    projector(losses.params)
    plain = ForwardEngine.project

    def off_by_a_percent(*given, **how):
        loss, P = plain(*given, **how)
        return loss, 1.01 * P

    monkeypatch.setattr(ForwardEngine, "project", off_by_a_percent)
    with pytest.raises(UnseenError, match="does not see all"):
        projector(losses.params)


def test_what_has_a_row_for_each_position_is_not_taken_for_one_of_each_text():
    class Placed(Plain):
        def forward(self, input_ids, places):
            return self.head(self.inner(self, self.embed(input_ids) + self.embed(places % 7)))

    losses = TokenLosses(Placed().double().eval(), [{**texts(20, 20), "places": torch.arange(20)}])
    rows = directions(losses).double()
    projector = Projector(losses, losses.params, rows, "forward")
    for _ in range(2):
        P = projector(losses.params)[1]
    torch.testing.assert_close(P, by_backward(losses, losses.params, rows), rtol=1e-8, atol=1e-10)


def test_a_model_that_is_set_to_train_after_the_projector_was_made():
    losses = small_losses(texts=20)
    rows = directions(losses)
    projector = Projector(losses, losses.params, rows, "forward")
    losses.model.train()
    for _ in range(2):
        P = projector(losses.params)[1]
    torch.testing.assert_close(P, by_jacobian(losses, losses.params, rows), rtol=1e-4, atol=1e-6)


def test_a_block_without_directions():
    losses = small_losses()
    rows = directions(losses)
    P = Projector(losses, losses.params, [rows[:0], rows], "forward")(losses.params)[1]
    torch.testing.assert_close(P, by_jacobian(losses, losses.params, rows), rtol=1e-4, atol=1e-6)


def test_a_small_batch_is_measured_as_it_is_and_the_first_call_goes_on_from_there(monkeypatch):
    losses = small_losses(texts=3)
    rows = directions(losses)
    made = []
    graph = forward._graph
    monkeypatch.setattr(forward, "_graph", lambda *given: made.append(given) or graph(*given))
    params = losses.params
    P = Projector(losses, params, rows, "forward")(params)[1]
    assert len(made) == 1 and len(made[0][0].batches[0]["input_ids"]) == 3
    torch.testing.assert_close(P, by_jacobian(losses, losses.params, rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("written", ["ids", "directions", "weights"])
def test_what_is_written_between_the_making_of_a_projector_and_its_first_call_counts(texts, written):
    losses = small_losses(texts=texts)
    rows = directions(losses)
    params = losses.params
    projector = Projector(losses, params, rows, "forward")
    if written == "ids":
        losses.batches[0]["input_ids"][:, :3] = 1
    elif written == "directions":
        rows.numpy()[:] *= 1.0001
    else:
        params["head.weight"].data *= 1.0001
    P = projector(params)[1]
    assert ((P - by_jacobian(losses, params, rows)).norm(dim=0) < 1e-5 * P.norm(dim=0)).all()


def test_a_small_batch_that_does_not_fit_is_cut_into_parts():
    losses = small_losses(texts=20)
    rows = directions(losses)
    projectors = [Projector(losses, losses.params, rows, "forward", memory=int(2**19 * 0.8**n)) for n in range(16)]
    parts = [[n_examples(batch) for batch in projector.losses.batches] for projector in projectors]
    assert parts[0] == [20] and len(parts[-1]) > 1 and sum(parts[-1]) == 20
    for projector in (projectors[0], projectors[-1]):
        P = projector(losses.params)[1]
        torch.testing.assert_close(P, by_jacobian(losses, losses.params, rows), rtol=1e-4, atol=1e-6)


def sizes_of_pieces(projector):
    return [n_examples(batch) for batch in projector._planned.pieces.losses.batches]


@pytest.mark.parametrize("engine", ["forward", "reverse"])
def test_a_large_batch_goes_in_pieces(monkeypatch, engine):
    losses = small_losses(texts=20)
    rows = directions(losses)
    monkeypatch.setattr(engines, "_FASTEST", 45)
    projector = Projector(losses, losses.params, rows, engine)
    for factor in (1, 2, 3):
        params = {name: factor * p for name, p in losses.params.items()}
        expected = by_jacobian(losses, params, rows)
        torch.testing.assert_close(projector(params)[1], expected, rtol=1e-4, atol=1e-5)
        assert sizes_of_pieces(projector) == [7, 7, 6]


def test_large_batches_that_no_check_sum_is_for_stay_whole(monkeypatch):
    monkeypatch.setattr(engines, "_FASTEST", 45)
    losses = small_losses(texts=20)
    assert sizes_of_pieces(Projector(losses, losses.params, directions(losses), "difference")) == [20]
    losses.model.to(torch.bfloat16)
    losses = TokenLosses(losses.model, losses.batches)
    assert sizes_of_pieces(Projector(losses, losses.params, directions(losses), "forward")) == [20]


@pytest.mark.parametrize(
    "seen",
    [torch.sin, lambda mean: mean - mean.detach(), lambda mean: 1e-3 * mean],
    ids=["value", "derivative", "little"],
)
def test_a_large_batch_of_texts_that_depend_on_each_other_is_projected_as_it_is(monkeypatch, seen):
    monkeypatch.setattr(engines, "_FASTEST", 45)
    torch.manual_seed(0)
    losses = TokenLosses(Coupled(seen).double().eval(), [texts(20)])
    rows = directions(losses).double()
    projector = Projector(losses, losses.params, rows, "forward")
    assert sizes_of_pieces(projector) == [7, 7, 6]
    for factor in (1, 2):
        params = {name: factor * p for name, p in losses.params.items()}
        torch.testing.assert_close(projector(params)[1], by_backward(losses, params, rows), rtol=1e-8, atol=1e-10)
        assert sizes_of_pieces(projector) == [20]


def test_texts_that_depend_on_each_other_from_some_checkpoint_on(monkeypatch):
    monkeypatch.setattr(engines, "_FASTEST", 45)
    torch.manual_seed(0)
    losses = TokenLosses(Coupled(lambda mean: torch.relu(mean - 0.5)).double().eval(), [texts(20)])
    rows = directions(losses).double()
    projector = Projector(losses, losses.params, rows, "forward")
    for factor in (1, 2):  # the second call, too, is held against the check sum
        params = {name: factor * p for name, p in losses.params.items()}
        torch.testing.assert_close(projector(params)[1], by_backward(losses, params, rows), rtol=1e-8, atol=1e-10)
    assert sizes_of_pieces(projector) == [20]


def test_projections_that_are_not_finite_are_of_the_batch_that_was_given(monkeypatch):
    monkeypatch.setattr(engines, "_FASTEST", 18)
    small = small_losses(texts=10)
    good, bad = (dict(small.batches[0]) for _ in range(2))
    bad["input_ids"] = bad["input_ids"].clamp_min(1)
    good["input_ids"] = torch.zeros_like(good["input_ids"])
    losses = TokenLosses(small.model, [good, bad])
    projector = Projector(losses, losses.params, directions(losses), "forward")
    assert sizes_of_pieces(projector) == [3, 3, 3, 1] * 2
    params = {name: p.clone() for name, p in losses.params.items()}
    params["embed.weight"][1:] = torch.nan
    with pytest.raises(ValueError, match="gradients of batch 1 are not finite"):
        projector(params)


def one_text(kind=Plain):
    torch.manual_seed(0)
    losses = TokenLosses(kind().double().eval(), [texts(1, positions=41)])
    rows = directions(losses).double()
    projector = Projector(losses, losses.params, rows, "forward")
    projector(losses.params)
    return losses, rows, projector


@pytest.mark.parametrize("kind", [Plain, PlainKeeping], ids=["all logits", "some logits"])
def test_of_few_texts_a_tenth_of_the_targets_is_held_against_the_check_sum(monkeypatch, kind):
    losses, rows, projector = one_text(kind)
    plain = ForwardEngine.project
    seen = set()
    for token in range(40):

        def off_in_one_token(*given, **how):
            loss, P = plain(*given, **how)
            P[token] *= 2
            return loss, P

        monkeypatch.setattr(ForwardEngine, "project", off_in_one_token)
        projector._planned.calls = 1
        try:
            projector(losses.params)
        except UnseenError:
            seen.add(token)
    assert len(seen) == 4 and max(seen) - min(seen) == 3


def test_in_turn_the_check_sum_takes_all_targets_of_few_texts():
    losses = TokenLosses(Plain().eval(), [texts(3, positions=21)])
    seen = [set(np.flatnonzero(_a_tenth(losses, 0, turn).tokens)) for turn in (1, *range(16, 1600, 16))]
    assert {len(some) for some in seen} == {5} and set.union(*seen) == set(range(60))


class PlainOther(PlainKeeping):
    "Whose logits are others where only some are asked for."

    def forward(self, input_ids, logits_to_keep: slice | torch.Tensor = slice(None)):
        logits = super().forward(input_ids, logits_to_keep)
        return logits if isinstance(logits_to_keep, slice) else 2 * logits


class PlainLast(Plain):
    "Which gives a number of last logits."

    def forward(self, input_ids, logits_to_keep: int = 0):
        assert isinstance(logits_to_keep, int)
        return super().forward(input_ids)[:, -logits_to_keep:]


class PlainUntold(Plain):
    "Which does not say what `logits_to_keep` is, and gives all."

    def forward(self, input_ids, logits_to_keep=None):
        return super().forward(input_ids)


@pytest.mark.parametrize("kind", [PlainOther, PlainLast, PlainUntold])
def test_the_second_check_sum_of_a_model_that_has_another_idea_of_logits_to_keep(kind):
    losses, rows, projector = one_text(kind)
    P = projector(losses.params)[1]
    torch.testing.assert_close(P, by_backward(losses, losses.params, rows), rtol=1e-8, atol=1e-10)
