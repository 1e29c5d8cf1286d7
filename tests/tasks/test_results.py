"""Files of results that are damaged, or of another format or configuration."""

import pytest

from polca.core.disk import write_json
from polca.tasks.arithmetic import addition_preset
from polca.tasks.results import read_results, write_results


@pytest.mark.parametrize("contents", ["{", '{"made_by": "me", "format": 2}'], ids=["cut short", "without a check sum"])
def test_a_file_that_is_damaged_is_refused(tmp_path, contents):
    (tmp_path / "mine.json").write_text(contents)
    with pytest.raises(ValueError, match="is damaged or not of polca .*: make it again with: make it"):
        read_results(tmp_path / "mine.json", "me", "make it")


def test_results_of_an_older_format_are_refused(tmp_path):
    write_json(tmp_path / "mine.json", {"made_by": "me", "format": 1}, checked=True)
    with pytest.raises(ValueError, match="in format 1, not by 'me' in format 2"):
        read_results(tmp_path / "mine.json", "me", "make it")


def test_results_of_another_seed_are_refused(tmp_path):
    write_results(tmp_path / "mine.json", "me", addition_preset("tiny"), {"answer": 42})
    with pytest.raises(ValueError, match="seed=0, not 1"):
        read_results(tmp_path / "mine.json", "me", "make it", addition_preset("tiny", seed=1))
