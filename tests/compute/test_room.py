"""Directions and Krylov spaces that do not fit in memory: the same numbers from mapped files, and what is refused."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from trained import Trained

from polca.compute.lanczos import bytes_beside, lanczos
from polca.compute.projection import project
from polca.compute.subspace import hessian_subspace
from polca.core import room

STEPS = [0, 20, 40]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def mapped():
    "No memory is free; the numbers of the tensors that were mapped for that."
    made = []

    def noted(n, d, *others):
        made.append(n)
        return original(n, d, *others)

    original = room._mapped_rows
    with patch.object(room, "free_memory", return_value=0), patch.object(room, "_mapped_rows", noted):
        yield made


def analysed(trained, path):
    basis = hessian_subspace(trained.store, trained.losses_32, STEPS, path=path, progress=False)
    projection = project(trained.store, basis, trained.losses_32, STEPS, progress=False)
    return basis.directions, torch.as_tensor(projection["gradient"].values)


def test_a_basis_in_a_mapped_file_is_the_same(trained, tmp_path, mapped):
    with patch.object(room, "free_memory", return_value=2**40):
        in_memory = analysed(trained, tmp_path / "in memory")
    assert not mapped
    torch.testing.assert_close(analysed(trained, tmp_path / "mapped"), in_memory, rtol=0, atol=0)
    assert 3 in mapped
    assert not [file for file in (tmp_path / "mapped").iterdir() if file.suffix != ".safetensors"]


def test_a_basis_is_loaded_into_a_mapped_file(trained, tmp_path, mapped):
    made = analysed(trained, tmp_path)[0].clone()
    mapped.clear()
    again = hessian_subspace(trained.store, trained.losses_32, STEPS, path=tmp_path, progress=False)
    assert mapped == [3]
    assert torch.equal(again.directions, made)


def test_a_krylov_space_that_memory_does_not_hold_is_mapped():
    spectrum = torch.linspace(1, 100, 5_000) ** 2
    spaces = []

    def noted(n, d, *others):
        spaces.append(n)
        return original(n, d, *others)

    original = room._mapped_rows
    whole = lanczos(spectrum.__mul__, 5_000, max_iterations=500, strict=True)
    with patch.object(room, "_mapped_rows", noted):
        tight = lanczos(
            spectrum.__mul__, 5_000, max_iterations=500, strict=True, memory=bytes_beside(5_000, 1, torch.float32)
        )
    assert spaces == [13, 13]
    assert tight.values == pytest.approx(whole.values, rel=1e-5)


def test_a_disk_without_room_is_named(tmp_path):
    disk = SimpleNamespace(free=1000)
    with patch.object(room, "free_memory", return_value=0), patch("shutil.disk_usage", return_value=disk):
        with pytest.raises(ValueError, match="fewer directions"):
            room.rows_to_fill(5, 100, torch.float32, folder=tmp_path / "not yet there")
    assert not list(tmp_path.iterdir())
