"""What is known of variants: said once, kept, found again, and shared with other processes."""

import asyncio
import threading

from eval.probing.evidence_store import EvidenceStore
from eval.probing.verdicts import Verdict
from tests.eval.probing.world import DENSE, S10, S20, World


def test_two_servers_that_share_a_file_learn_from_each_other(tmp_path):
    """One finds a variant out; the other neither forgets that nor makes the file forget it."""
    first, second = (
        World(store=EvidenceStore(tmp_path / "evidence.sqlite"), subjects=(DENSE, S20)) for _ in range(2)
    )
    for world in (first, second):
        world.run_now(items=20)
    first.model.wrong = {"m:s20": 0.9}
    first.run_now(items=200)
    assert first.prober.evidence("m:s20").verdict is Verdict.DEGRADED
    assert second.verdicts == []
    second.run_now(items=1)
    assert second.prober.evidence("m:s20").verdict is Verdict.DEGRADED
    assert [(name, after) for name, _, after, _ in second.verdicts] == [("m:s20", Verdict.DEGRADED)]
    for world in (first, second, first):
        world.run_now(items=2)
    again = World(store=EvidenceStore(tmp_path / "evidence.sqlite"), subjects=(DENSE, S20))
    again.prober.load()
    assert again.prober.evidence("m:s20").verdict is Verdict.DEGRADED
    reference = again.prober.evidence("m:s0")
    assert reference.items + reference.repeats == 20 + 20 + 200 + 1 + 6, "of both"


def test_what_cannot_be_read_again_takes_the_place_of_nothing(tmp_path):
    first, second = (
        World(store=EvidenceStore(tmp_path / "evidence.sqlite"), subjects=(DENSE, S20)) for _ in range(2)
    )
    second.run_now(items=20)
    first.model.wrong = {"m:s20": 0.9}
    first.run_now(items=200)
    reread, second.store.reread = second.store.reread, lambda key: None
    second.run_now(items=1)
    evidence = second.prober.evidence("m:s20")
    assert (evidence.verdict, evidence.items + evidence.repeats) == (Verdict.UNPROVEN, 21)
    second.store.reread = reread
    second.run_now(items=1)
    assert second.prober.evidence("m:s20").verdict is Verdict.DEGRADED


def test_a_verdict_by_another_tolerance_is_another(tmp_path):
    strict, patient = (
        World(store=EvidenceStore(tmp_path / "evidence.sqlite"), subjects=(DENSE, S20), tolerance=tolerance)
        for tolerance in (0.03, 0.4)
    )
    for world in (strict, patient, strict, patient):
        world.model.wrong = {"m:s20": 0.25}
        world.run_now(items=300)
    assert strict.prober.evidence("m:s20").verdict is Verdict.DEGRADED
    assert patient.prober.evidence("m:s20").verdict is Verdict.SAFE
    assert patient.prober.evidence("m:s20").items == 600


def test_evidence_and_verdicts_survive_a_restart(tmp_path):
    store = EvidenceStore(tmp_path / "evidence.sqlite")
    world = World(tokens=60_000, store=store)
    world.model.wrong = {"m:s20": 0.3}
    world.run()
    store.close()
    again = World(store=EvidenceStore(tmp_path / "evidence.sqlite"))
    assert again.prober.evidence("m:s20") is None
    again.prober.load()
    for subject in world.subjects:
        assert again.prober.evidence(subject.name) == world.prober.evidence(subject.name)
        assert again.prober.changes(subject.name) == world.prober.changes(subject.name)
    assert again.verdicts == []
    other = World(store=EvidenceStore(tmp_path / "evidence.sqlite"), identity="another ranking")
    other.prober.load()
    assert other.prober.evidence("m:s20").verdict is Verdict.UNPROVEN
    assert other.prober.evidence("m:s20").items == 0


class SlowStore(EvidenceStore):
    """Its first `read` begins, and does not end before it is told to."""

    def __init__(self):
        super().__init__(None)
        self.reading, self.go_on = threading.Event(), threading.Event()

    def read(self, key):
        record = super().read(key)
        if not self.reading.is_set():
            self.reading.set()
            assert self.go_on.wait(60)
        return record


def test_what_a_round_found_is_not_forgotten_by_who_read_beside_it():
    store = SlowStore()
    world = World(store=store, subjects=(DENSE, S10))

    async def both():
        refreshing = asyncio.create_task(world.prober.refresh())
        assert await asyncio.to_thread(store.reading.wait, 60)  # it has read that nothing is known
        await world.prober.run_now(items=20)
        store.go_on.set()
        await refreshing

    asyncio.run(both())
    assert [world.prober.evidence(s.name).items for s in (DENSE, S10)] == [20, 20]
    world.run_now(items=4)
    assert [world.prober.evidence(s.name).items for s in (DENSE, S10)] == [24, 24]
    assert len(store.read(world.prober._key(DENSE, DENSE)).outcomes) == 24


def test_what_nobody_can_solve_is_said_once_and_nobody_is_safe(caplog):
    world = World()
    world.model.wrong = {s.name: 1.0 for s in world.subjects}
    world.run_now(items=200)
    for subject in world.subjects[1:]:
        evidence = world.prober.evidence(subject.name)
        assert (evidence.verdict, evidence.drop) == (Verdict.UNPROVEN, 0.0)
        assert "solves 0 of 200 items" in evidence.nothing_to_lose
        assert caplog.text.count(f"{subject.name} cannot be shown to be safe by numbers") == 1
    assert world.verdicts == []


def test_a_lapse_is_told_with_its_reason(tmp_path):
    store = EvidenceStore(tmp_path / "evidence.sqlite")
    world = World(store=store, subjects=(DENSE, S10))
    world.run_now(items=300)
    world.model.wrong = {"m:s0": 1.0, "m:s10": 1.0}
    world.run_now(items=200)
    lapsed = world.prober.changes("m:s10")[-1]
    assert (lapsed.before, lapsed.after) == (Verdict.SAFE, Verdict.UNPROVEN)
    again = World(store=EvidenceStore(tmp_path / "evidence.sqlite"), subjects=(DENSE, S10))
    again.prober.load()
    assert again.prober.evidence("m:s10") == world.prober.evidence("m:s10")
    assert again.prober.changes("m:s10")[-1].evidence.nothing_to_lose == lapsed.evidence.nothing_to_lose
