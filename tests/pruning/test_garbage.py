import gc
from collections.abc import Iterator

import pytest

from pruning.garbage import no_garbage_collection


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_waits_and_is_collected_afterwards_if_it_was_before(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled() == was_on


def test_garbage_is_collected_after_an_error() -> None:
    gc.enable()
    with pytest.raises(ZeroDivisionError), no_garbage_collection():
        raise ZeroDivisionError
    assert gc.isenabled()
