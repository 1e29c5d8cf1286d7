"""The projection of a small model: against its definitions in other ways, damaged on disk, and refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

from polca.compute.basis import as_subspace
from polca.compute.projection import project
from polca.compute.store import open_projection
from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses, n_parameters

OPTIONS = {"curvature": "token", "nodes": 7, "progress": False}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    "Checkpoints, a basis and losses of a small model in float64, two batches, some positions without a target."
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.LayerNorm(3), torch.nn.Tanh(), torch.nn.Linear(3, 7))
    model = model.double().eval()
    ids = torch.randint(0, 7, (5, 6))
    labels = ids.masked_fill(torch.rand(5, 6) < 0.3, -100)
    losses = TokenLosses(model, [{"input": ids[s], "labels": labels[s]} for s in (slice(0, 2), slice(2, 5))])
    store = Checkpoints(tmp_path_factory.mktemp("job") / "checkpoints")
    for step in range(5):
        store.save(10 * step, losses.params)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.05 * torch.randn_like(p)
    B = torch.linalg.qr(torch.randn(n_parameters(losses.params), 3).double()).Q.T.contiguous()
    return store, as_subspace(B, losses.params), losses


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    "The folder of a projection that nothing happened to, and its numbers."
    path = tmp_path_factory.mktemp("projections") / "whole.zarr"
    return path, project(*job, path=path, **OPTIONS).load()


@pytest.fixture
def copy(whole, tmp_path):
    "A copy of it, to be damaged."
    return shutil.copytree(whole[0], tmp_path / "copy.zarr")


def flip(file, place=-1):
    "Flip one bit of a file."
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)


def opens(path):
    return open_projection(path, verify=True).load()


def test_in_memory_the_numbers_are_the_same(job, whole):
    assert project(*job, **OPTIONS).identical(whole[1])


def test_the_mean_curvature_of_a_sample_is_that_of_its_tokens(job, whole):
    store, basis, losses = job
    sample = project(*job, steps=[20, 30], curvature=losses, progress=False)
    np.testing.assert_allclose(sample.curvature[0], whole[1].curvature.sel(step=20), rtol=1e-8)


def test_central_differences_agree_and_report_their_error(job, whole):
    rough = project(*job, steps=[20, 30], engine="difference", progress=False)
    np.testing.assert_allclose(rough.gradient[0], whole[1].gradient.sel(step=20), rtol=1e-5, atol=1e-7)
    assert (rough.difference_error < 1e-6).all()


def test_nothing_is_outside_a_basis_of_all_directions(job):
    store, _, losses = job
    every = as_subspace(torch.eye(n_parameters(losses.params)).double(), losses.params)
    assert (project(store, every, losses, steps=[20, 30], progress=False).outside == 0).all()


# damage


def test_damaged_checkpoints_are_computed_again(job, whole, copy):
    for damaged in ("complete/3", "gradient/2.0.0", "outside/1.0.1", "path_gradient/1.0.0"):
        (copy / damaged).write_bytes(b"garbage")
    (copy / "movement" / "1.0").unlink()
    assert project(*job, path=copy, **OPTIONS).load().identical(whole[1])


def test_reading_a_chunk_with_a_flipped_bit_is_an_error_until_it_is_computed_again(job, whole, copy):
    flip(copy / "gradient" / "2.0.0")
    with pytest.raises(RuntimeError):
        open_projection(copy)["gradient"].sel(step=20).values
    with pytest.raises(ValueError, match="gradient at step 20"):
        opens(copy)
    project(*job, path=copy, **OPTIONS)
    assert opens(copy).identical(whole[1])


PLACES = {
    "loss/1.0": "loss at step 10",
    "movement/3.0": "movement in the interval from step 30",
    "outside/0.0.1": "outside in the interval from step 0",
    "path_error/2": "path_error in the interval from step 20",
    "engine/4": "engine at step 40",
    "complete/0": "complete at step 0",
}


@pytest.mark.parametrize("file", PLACES)
def test_a_flipped_bit_is_found_and_named(copy, file):
    flip(copy / file)
    with pytest.raises(ValueError, match=PLACES[file]):
        opens(copy)


def test_a_missing_chunk_is_found_named_and_computed_again(job, whole, copy):
    for file in PLACES:
        flip(copy / file)
    with pytest.raises(ValueError, match="unfinished, 4 of 5"):
        open_projection(copy)
    project(*job, path=copy, **OPTIONS)
    (copy / "outside" / "1.0.0").unlink()
    with pytest.raises(ValueError, match="outside in the interval from step 10"):
        opens(copy)
    assert project(*job, path=copy, **OPTIONS).load().identical(whole[1])


@pytest.mark.parametrize("name", ["step", "token", "target_id", "interval_end", "source_step", "end"])
def test_with_a_damaged_coordinate_nothing_else_can_be_trusted(job, copy, name):
    message = rf"the coordinate {name}\): delete it"
    flip(copy / name / "0")
    with pytest.raises(ValueError, match=message):
        project(*job, path=copy, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        opens(copy)
    if name in ("step", "token", "end"):
        with pytest.raises(ValueError, match=f"the coordinate {name}"):
            open_projection(copy)
    (copy / name / "0").unlink()
    with pytest.raises(ValueError, match=f"the coordinate {name}"):
        project(*job, path=copy, **OPTIONS)


@pytest.mark.parametrize("name", ["gradient/.zarray", "loss/.zattrs", "step/.zarray", ".zattrs", ".zgroup"])
def test_a_flipped_bit_in_what_describes_the_arrays_is_found_or_means_nothing(whole, copy, name):
    kept = (copy / name).read_bytes()
    for place in range(3, len(kept), max(1, len(kept) // 9)):
        flip(copy / name, place)
        try:
            found = open_projection(copy).load()
        except ValueError as e:
            assert "is damaged" in str(e) and "delete it" in str(e), e
        else:  # white space, or a name nobody reads
            assert found.drop_attrs().identical(whole[1].drop_attrs()), place
        (copy / name).write_bytes(kept)
    assert opens(copy).identical(whole[1])


def test_a_projection_of_an_earlier_version_is_read_and_gone_on_with(job, whole, copy):
    "Without a check sum, and without an array of engines."
    attributes = json.loads((copy / ".zattrs").read_text())
    del attributes["check_sum"]
    (copy / ".zattrs").write_text(json.dumps(attributes | {"engines": whole[1].attrs["engines"]}))
    shutil.rmtree(copy / "engine")
    (copy / "complete" / "3").unlink()
    with pytest.raises(ValueError, match="unfinished, 4 of 5"):
        open_projection(copy)
    assert project(*job, path=copy, **OPTIONS).load().identical(whole[1])


# refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [0]}, "at least two"),
        ({"curvature": "mean"}, "give 'token'"),
        ({"tol": 0.0}, "positive"),
        ({"nodes": 0}, "`nodes` of 1"),
        ({"tol": 1e-3, "max_nodes": 0}, "max_nodes=0: give 1 or more"),
        ({"shard": False, "nodes": 3, "tol": 0.1}, "or `tol`"),
    ],
)
def test_arguments_are_refused(job, options, message):
    with pytest.raises(ValueError, match=message):
        project(*job, **options)


def test_directions_in_half_precision_are_refused(job):
    store, basis, losses = job
    half = type(basis)(basis.directions.bfloat16(), basis.table, basis.shapes)
    with pytest.raises(ValueError, match="cannot be orthonormal to rounding"):
        project(store, half, losses)


class Infinite(TokenLosses):
    armed = False

    def batch(self, i, params=None, fused=False):
        return super().batch(i, params, fused) * (float("inf") if self.armed else 1)


def test_losses_that_are_not_finite_are_refused(job):
    store, basis, losses = job
    infinite = Infinite(losses.model, losses.batches)
    infinite.armed = True
    n = len(losses)
    with pytest.raises(ValueError, match=f"not finite to {n} of {n} tokens"):
        project(store, basis, infinite, engine="forward", progress=False)


def test_a_path_without_a_projection_is_refused(job, tmp_path):
    store, basis, losses = job
    with pytest.raises(ValueError, match="holds no projection"):
        open_projection(tmp_path / "nowhere.zarr")
    with pytest.raises(ValueError, match="holds no projection"):
        project(store, basis, losses, steps=[0, 10], path=store.path)


def test_damaged_equal_or_other_checkpoints_are_refused_and_what_is_on_disk_stays(job, whole, copy, tmp_path):
    store, basis, losses = job
    store = Checkpoints(shutil.copytree(store.path, tmp_path / "checkpoints"))
    kept = store.file(40).read_bytes()
    store.file(40).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="damaged"):
        project(store, basis, losses)
    store.save(40, {n: p + 0.01 for n, p in store.load(30).items()})
    with pytest.raises(ValueError, match="other weights"):
        project(store, basis, losses, path=copy, **OPTIONS)
    store.save(40, store.load(30))
    with pytest.raises(ValueError, match="are equal"):
        project(store, basis, losses)
    store.file(40).write_bytes(kept)
    xr.testing.assert_identical(open_projection(copy).load(), whole[1])
    assert project(store, basis, losses, path=copy, **OPTIONS).load().identical(whole[1])
