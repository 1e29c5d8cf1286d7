"""Runs of which a part is missing, for tests."""

import shutil

from polca.runs.manifest import LEAVES, read_manifest, write_manifest


def remove(folder, stages):
    "Delete what stages of a run have left."
    for stage in stages:
        path = folder / LEAVES.get(stage, "checkpoints")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def forget(folder, stages):
    "Let a run not know that stages are complete."
    manifest = read_manifest(folder)
    for stage in stages:
        del manifest["stages"][stage]
    write_manifest(folder / "run.json", manifest)


def copy_without(folder, copy, stages):
    "A copy of a run without some of its stages."
    shutil.copytree(folder, copy)
    remove(copy, stages)
    forget(copy, stages)
    return copy
