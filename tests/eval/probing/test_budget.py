"""A bucket gives what its rate allows over time, no more, and gets its debts back."""

from hypothesis import given
from hypothesis import strategies as st

from eval.probing.budget import TokenBucket


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_it_fills_up_to_its_size():
    clock = Clock()
    bucket = TokenBucket(lambda: 8.0, burst_seconds=10.0, clock=clock)
    assert bucket.available() == 0
    clock.now += 3
    assert bucket.available() == 24
    clock.now += 1_000
    assert bucket.available() == 80


def test_a_debt_is_paid_back_first():
    clock = Clock()
    bucket = TokenBucket(lambda: 10.0, clock=clock)
    clock.now += 1
    bucket.spend(500)
    clock.now += 48
    assert bucket.available() <= 0
    clock.now += 2
    assert bucket.available() == 10


def test_while_blocked_it_fills_and_gives_nothing():
    clock, blocked = Clock(), [True]
    bucket = TokenBucket(lambda: 10.0, blocked=lambda: blocked[0], clock=clock)
    clock.now += 2
    assert bucket.available() == 0
    blocked[0] = False
    assert bucket.available() == 20


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 300)), max_size=40), st.floats(0.1, 50))
def test_what_is_spent_is_within_the_rate_but_for_one_round(steps, rate):
    clock = Clock()
    bucket, spent, started = TokenBucket(lambda: rate, clock=clock), 0, clock.now
    for seconds, cost in steps:
        clock.now += seconds
        if bucket.available() > 0:
            bucket.spend(cost)
            spent += cost
        assert spent <= rate * (clock.now - started) + 300
    assert bucket.available() <= rate * 10
