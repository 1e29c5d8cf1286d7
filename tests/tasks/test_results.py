"""Files of results that are damaged, or of another format or configuration."""

import pytest

from polca.tasks.arithmetic import addition_preset
from polca.tasks.results import read_results, write_results


@pytest.mark.parametrize(
    ("contents", "message"),
    [("{", "damaged"), ('{"made_by": "me", "format": 1}', "in format 1, not by 'me' in format 2")],
)
def test_a_file_that_is_damaged_or_older_is_refused(tmp_path, contents, message):
    (tmp_path / "mine.json").write_text(contents)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "mine.json", "me", "polca run arithmetic --preset tiny")


def test_results_of_another_seed_are_refused(tmp_path):
    write_results(tmp_path / "mine.json", "me", addition_preset("tiny"), {"answer": 42})
    with pytest.raises(ValueError, match="seed=0, not 1"):
        read_results(tmp_path / "mine.json", "me", "make it", addition_preset("tiny", seed=1))
