"""Bases on disk: what comes back is what was saved, and what is damaged or of another making is refused."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from trained import Trained

from polca.compute.basis_files import (
    directions_file,
    load_directions,
    load_subspace,
    save_subspace,
)
from polca.compute.subspace import hessian_subspace

STEPS = range(0, 50, 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def made(trained):
    "A basis of five directions, and where it was made."
    path = trained.folder / "basis"
    hessian_subspace(trained.store, trained.losses_32, STEPS, path=path, progress=False)
    return load_subspace(path), path


@pytest.fixture
def copy(made, tmp_path):
    "A copy of its files, to be damaged."
    return shutil.copytree(made[1], tmp_path / "copy")


def test_a_basis_is_loaded_with_the_data_it_was_made_with(trained, made):
    basis, path = made
    assert load_subspace(path, losses=trained.losses_32).table.equals(basis.table)
    with pytest.raises(ValueError, match="other data"):
        load_subspace(path, losses=trained.part)


def test_a_basis_that_was_saved_comes_back(trained, made, tmp_path):
    basis, _ = made
    saved = save_subspace(basis, tmp_path / "saved")
    assert torch.equal(load_subspace(saved, trained.losses_32.params).directions, basis.directions)
    assert load_subspace(saved).table.equals(basis.table)
    with pytest.raises(ValueError, match="other data"):
        load_subspace(saved, losses=trained.part)
    with pytest.raises(ValueError, match="already"):
        save_subspace(basis, saved)


def test_files_of_others_are_refused(made, tmp_path):
    save_file({"directions": made[0].directions}, directions_file(tmp_path, 0))
    with pytest.raises(ValueError, match="that polca wrote"):
        load_subspace(tmp_path)


def test_a_folder_without_a_basis_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no basis"):
        load_subspace(tmp_path / "nowhere")


@pytest.mark.parametrize("place", [100, 300, 600, -20])  # of the header, of the rows, of the directions
def test_a_flipped_bit_is_noticed(copy, place):
    file = directions_file(copy, 20)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="delete it"):
        load_subspace(copy)


def test_a_file_that_was_cut_is_noticed(trained, copy):
    directions_file(copy, 40).write_bytes(b"cut")
    with pytest.raises(ValueError, match="damaged"):
        load_subspace(copy)
    with pytest.raises(ValueError, match="damaged"):
        hessian_subspace(trained.store, trained.losses_32, STEPS, path=copy, progress=False)


def test_files_of_earlier_versions_have_no_check_sum(copy):
    directions, header = load_directions(directions_file(copy, 10))
    earlier = copy / "earlier.safetensors"
    save_file({"directions": directions}, earlier, metadata=header.texts())
    assert torch.equal(load_directions(earlier)[0], directions)
    save_file({"directions": directions}, earlier, metadata={**header.texts(), "rows": "[{"})
    with pytest.raises(ValueError, match="its header"):
        load_directions(earlier)
