"""Python's garbage collector, held back for a while."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Unreachable cycles are not looked for, where that costs time and finds none, or giving them back harms.

    What makes objects by the hundred thousand and keeps them, as imports and a tokenizer do, is else walked
    over again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
