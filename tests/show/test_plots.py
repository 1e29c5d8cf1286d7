"""What figures have in common."""

from polca.analysis.decomposition import RULES
from polca.show.plots import RULE_COLORS


def test_every_rule_has_a_color_of_its_own():
    assert set(RULE_COLORS) == set(RULES)
    assert len(set(RULE_COLORS.values())) == len(RULES)
