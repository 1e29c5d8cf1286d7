"""Runs of which a part is missing, for tests."""

import shutil

from polca.runs.manifest import FORMAT, LEAVES, hash_settings, plain_values, read_manifest, write_manifest


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


def made_up(folder, task, config, stages=("train",), steps=(0, 100)):
    """A run directory whose manifest says that `stages` are complete, which nobody has made: of `train` it knows the
    `steps`, of each of the others there is a file.
    """
    config = plain_values(config)
    records = {}
    before = None
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage != "train":
            (folder / LEAVES[stage]).write_text(stage)
        records[stage] = {
            "settings": hash_settings(config, stage),
            "input": before,
            "output": f"hash of {stage}",
            "disk": len(stage),
            "seconds": 1.5,
            "peak_memory": 2**29,
        }
        before = records[stage]["output"]
    records["train"]["weights"] = {str(step): "hash of its weights" for step in steps}
    manifest = {"format": FORMAT, "task": task, "config": config, "stages": records}
    write_manifest(folder / "run.json", manifest)
    return folder
