"""Settings of the whole test suite."""

import signal

import pytest
import torch
from hypothesis import settings

# No deadline: how long an example takes is the machine's business, not the code's.
settings.register_profile("secateur", deadline=None, max_examples=60)
settings.load_profile("secateur")

# The networks are so small that a second thread costs more than it brings.
torch.set_num_threads(1)

# A shell makes what it starts in the background deaf to Ctrl-C, and so every program that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def a_cache_of_the_tests_own(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a test finds there must not be what an earlier run, or the developer, has left."""
    if request.node.get_closest_marker("reference") is None:
        monkeypatch.setenv("SECATEUR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
