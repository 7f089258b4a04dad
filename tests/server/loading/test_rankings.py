"""Which orders of the neurons may be judged by what."""

import pytest

from server.loading.rankings import check_apart
from server.settings import SettingsError
from tests.pruning.calibration.tiny_profiles import tiny_provenance


def test_an_order_is_not_judged_by_what_it_was_measured_on() -> None:
    """HumanEval's calibration takes both halves of MBPP."""
    with pytest.raises(SettingsError, match="Use --task humaneval, or measure for mbpp"):
        check_apart(tiny_provenance(task="humaneval"), "mbpp")
    for measured, judged in (("humaneval", "humaneval"), ("mbpp", "humaneval"), ("mbpp", "mbpp")):
        check_apart(tiny_provenance(task=measured), judged)
