"""The device of these tests mixes with the CPU where torch lets a GPU mix with it, and nowhere else: by torch's own
fake tensors, which know the devices of an operation, and no numbers."""

import numpy as np
import pytest
import torch
from other_device import OTHER, OtherDevice
from torch._subclasses.fake_tensor import FakeTensorMode

ROWS = torch.tensor([2, 0])


MIXED = {
    "sum": lambda a, c: a + c,
    "sum with a number": lambda a, c: a + c[0, 0],
    "sum of a number": lambda a, c: c[0, 0] + a,
    "sum with a number from there": lambda a, c: c + a[0, 0],
    "sum in place": lambda a, c: a.add_(c),
    "sum with a number in place": lambda a, c: a.add_(c[0, 0]),
    "sum in place on the CPU": lambda a, c: c.add_(a),
    "sum in place in a number on the CPU": lambda a, c: c[0, 0].add_(a[0, 0]),
    "sum into the CPU": lambda a, c: torch.add(a, a, out=c),
    "product": lambda a, c: a @ c,
    "product with a vector": lambda a, c: torch.addmv(a[0], a, c[0]),
    "cat": lambda a, c: torch.cat([a, c]),
    "stack": lambda a, c: torch.stack([a[0], c[0]]),
    "where a condition is elsewhere": lambda a, c: torch.where(a > 0, c, c),
    "where a number is on the CPU": lambda a, c: torch.where(a > 0, a, c[0, 0]),
    "mask on the CPU": lambda a, c: a.masked_fill(c > 0, 0.0),
    "number to fill in": lambda a, c: a.masked_fill(a > 0, c[0, 0]),
    "rows given on the CPU": lambda a, c: a[ROWS],
    "rows selected on the CPU": lambda a, c: a.index_select(0, ROWS),
    "rows added on the CPU": lambda a, c: a.index_add(0, ROWS, a[:2]),
    "rows gathered on the CPU": lambda a, c: a.gather(0, ROWS[:, None]),
    "rows of an embedding": lambda a, c: torch.nn.functional.embedding(ROWS, a),
    "rows written": lambda a, c: a.index_put((ROWS,), c[:2]),
    "rows written with a number": lambda a, c: a.index_put((ROWS,), c[0, 0]),
    "copy": lambda a, c: a.copy_(c),
    "copy to the CPU": lambda a, c: c.copy_(a),
    "brought there": lambda a, c: a + c.to(a),
    "brought here": lambda a, c: a.cpu() + c,
    "new there": lambda a, c: a + a.new_zeros(3) + torch.ones_like(a) + torch.arange(3, device=a.device),
    "new here": lambda a, c: a + torch.arange(3),
    "numbers of Python": lambda a, c: a + torch.tensor([1.0, 2, 3], device=a.device) * 2,
}


def outcome(mix):
    "The device of the result, or that there is none."
    try:
        return mix(torch.ones(3, 3).to(OTHER), torch.ones(3, 3)).device
    except RuntimeError:
        return "refused"


@pytest.mark.parametrize("name", MIXED)
def test_it_refuses_what_fake_tensors_refuse(name):
    with FakeTensorMode(allow_non_fake_inputs=True):  # here, too, as without CUDA none on `cuda` can be copied
        expected = outcome(MIXED[name])
    with OtherDevice():
        assert outcome(MIXED[name]) == expected


def test_it_refuses_what_has_numbers_and_a_gpu_refuses():
    with OtherDevice():
        a = torch.ones(3, 3).to(OTHER)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3, 3)[a[0].long()]
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=OTHER, generator=torch.Generator())
        for to_numpy in (a.numpy, lambda: np.asarray(a)):
            with pytest.raises((TypeError, RuntimeError), match="numpy"):
                to_numpy()


def test_numbers_and_derivatives_are_those_of_the_cpu():
    def slopes(x):
        y = (x[x > 0] ** 3).sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        return slope, *torch.autograd.grad(slope[0, 0], x), torch.func.jvp(torch.sin, (x,), (x,))[1]

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with OtherDevice():
        there = x.to(OTHER)
        assert there.tolist() == x.tolist() and float(there[1, 2]) == float(x[1, 2])
        found = slopes(there.requires_grad_())
        assert {t.device for t in found} == {OTHER}
        found = [t.detach().cpu() for t in found]
    assert all(torch.equal(*pair) for pair in zip(found, slopes(x.requires_grad_())))


def test_views_share_their_memory_there():
    with OtherDevice():
        a = torch.zeros(4, 3).to(OTHER)
        row = a[1]
        row += 2
        a.T[0, 3] = 5
        assert row.untyped_storage()._cdata == a.untyped_storage()._cdata
        assert a.sum(1).tolist() == [0, 6, 0, 5]
