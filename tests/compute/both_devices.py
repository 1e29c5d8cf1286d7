"""Tests that are run on the CPU and on the other device, must return the same on both, and say which functions ran."""

import tempfile
from collections.abc import Callable, Mapping
from cProfile import Profile
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType

import numpy as np
import pandas as pd
import torch
import xarray as xr
from other_device import CPU, OTHER, OtherDevice, move
from torch import Tensor, nn

CASES: list["Case"] = []


class Place:
    "Where a case is run: `at(value)` is a tensor or model, or several of them, on its device; `folder` is empty."

    def __init__(self, device: torch.device, folder: Path):
        self.device = device
        self.folder = folder

    def __call__(self, value):
        if isinstance(value, nn.Module):
            return move(value, self.device)
        if isinstance(value, Tensor):
            return value.to(self.device)
        if isinstance(value, Mapping):
            return {name: self(part) for name, part in value.items()}
        return type(value)(self(part) for part in value)


def check_alike(there, here, where: str = "result") -> None:
    "Tensors must be on `OTHER`; they, and what else there is, must have the shapes, dtypes and values of `here`."
    assert type(there) is type(here) or isinstance(here, Tensor), where
    if isinstance(here, Tensor):
        assert there.device == OTHER, f"{where} is on {there.device}"
        assert here.dtype == there.dtype, where
        here, there = (t.detach().cpu().double().numpy() for t in (here, there))
    if isinstance(here, (pd.DataFrame, pd.Series, xr.Dataset)):
        here, there = here.to_dict(), there.to_dict()
    if is_dataclass(here):
        here, there = ({f.name: getattr(each, f.name) for f in fields(each)} for each in (here, there))
    if isinstance(here, (list, tuple)):
        here, there = dict(enumerate(here)), dict(enumerate(there))
    if isinstance(here, Mapping):
        assert list(here) == list(there), where
        for name in here:
            check_alike(there[name], here[name], f"{where}.{name}")
    elif isinstance(here, (np.ndarray, float)) and np.asarray(here).dtype.kind == "f":
        size = np.nanmax(np.abs(here), initial=1e-9)
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5 * size, err_msg=where)
    else:
        np.testing.assert_array_equal(there, here, err_msg=where)


class Case:
    "A case: a function of a `Place`. What it runs of polca on the other device is in `ran`, once it was run there."

    def __init__(self, function: Callable[[Place], object]):
        self.function = function
        self.ran: set[CodeType] = set()

    def on(self, device: torch.device):
        with tempfile.TemporaryDirectory() as folder:
            return self.function(Place(device, Path(folder)))

    def elsewhere(self):
        profile = Profile(builtins=False)
        with OtherDevice(), profile:
            found = self.on(OTHER)
        self.ran = {entry.code for entry in profile.getstats()}
        return found


def both_devices(function: Callable[[Place], object]) -> Callable[[], None]:
    "The test that `function`, a case, returns on the other device what it returns on the CPU."
    case = Case(function)
    CASES.append(case)

    def test():
        check_alike(case.elsewhere(), case.on(CPU))

    test.__doc__ = function.__doc__
    return test


def all_that_ran() -> set[CodeType]:
    "What all cases run on the other device; those that were not run in this process are."
    for case in CASES:
        if not case.ran:
            case.elsewhere()
    return set().union(*(case.ran for case in CASES))
