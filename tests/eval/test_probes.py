"""The prober asks everybody the same, pays for it, survives everything, and says each change once.

Its collaborators are made up here: a task of numbered items and a `Generate` that answers as it is told.
"""

import asyncio
import itertools
import random
import threading
from collections import Counter

import pytest

from eval.evidence import EvidenceStore
from eval.generate import Answer, GenerateError
from eval.probes import MAX_RUN_ITEMS, Identity, ProbeError, Prober, Subject
from eval.task import TaskItem
from eval.traps import Trap
from eval.verdicts import Criterion, Verdict

DENSE, S10, S20 = (Subject(f"m:s{s}", s / 100, (100 - s,)) for s in (0, 10, 20))


class NumbersTask:
    name = "numbers"
    max_new_tokens = 50
    digest = "numbers/1"

    def __init__(self, num_evaluation=None):
        self.num_evaluation = num_evaluation

    def evaluation(self, count, seed):
        ids = range(count) if self.num_evaluation else range(seed * 64, seed * 64 + count)
        return [TaskItem(f"{n}", f"item {n}", "yes") for n in ids]

    def grade(self, item, answer):
        return answer == item.reference

    def answered(self, answer):
        return False


class Model:
    """Answers right but for the share in `wrong`, by name of variant; `broken` ones do not answer."""

    def __init__(self):
        self.wrong, self.broken, self.asked = {}, set(), []
        self.finish_reason = "stop"

    async def __call__(self, prompt, *, variant, max_tokens):
        self.asked.append((prompt, variant))
        rng = random.Random(f"{prompt}/{variant}")
        for _ in range(rng.randrange(4)):  # answers come in any order
            await asyncio.sleep(0)
        if variant in self.broken:
            raise GenerateError("the engine is dead")
        wrong = rng.random() < self.wrong.get(variant, 0.0)
        return Answer("no" if wrong else "yes", self.finish_reason, prompt_tokens=6, completion_tokens=4)

    def by_variant(self):
        return Counter(variant for _, variant in self.asked)


class Purse:
    """A budget that lasts for `tokens`, and then stops whoever waits for more."""

    def __init__(self, tokens):
        self.tokens, self.spent = tokens, 0

    def available(self):
        return self.tokens - self.spent

    def spend(self, tokens):
        self.spent += tokens


class SpentError(Exception):
    """Nothing more would happen: the budget is empty, or nobody answers."""


class World:
    """A prober and all that it works with."""

    def __init__(
        self,
        tokens=0,
        task=None,
        store=None,
        subjects=(DENSE, S10, S20),
        identity="ranking",
        guard=None,
        tolerance=0.03,
        at_once=32,
    ):
        self.subjects, self.model, self.purse = list(subjects), Model(), Purse(tokens)
        self.store, self.pauses, self.verdicts = store or EvidenceStore(None), [], []
        self.patience = 1  # pauses until it is enough
        ticks = itertools.count(1_000)
        self.prober = Prober(
            task or NumbersTask(),
            self.model,
            lambda: self.subjects,
            self.store,
            self.purse,
            identity=Identity("model", identity, "float32"),
            criterion=Criterion(tolerance),
            on_verdict=lambda *change: self.verdicts.append(change),
            guard=guard,
            at_once=at_once,
            wall_clock=lambda: float(next(ticks)),
            sleep=self._sleep,
        )

    async def _sleep(self, seconds):
        self.pauses.append(seconds)
        if len(self.pauses) >= self.patience:
            raise SpentError

    def run(self, tokens=0):
        self.purse.tokens += tokens
        self.pauses.clear()
        with pytest.raises(SpentError):
            asyncio.run(self.prober.run())

    def run_now(self, *args, **kwargs):
        return asyncio.run(self.prober.run_now(*args, **kwargs))


def test_everybody_is_asked_the_same_items_and_no_item_twice():
    world = World(tokens=3_000)
    world.run()
    prompts = {s.name: [p for p, variant in world.model.asked if variant == s.name] for s in world.subjects}
    assert set(prompts["m:s0"]) == set(prompts["m:s10"]) == set(prompts["m:s20"])
    assert len(set(prompts["m:s0"])) == len(prompts["m:s0"]) >= 90
    assert {world.prober.evidence(s.name).items for s in world.subjects} == {len(prompts["m:s0"])}


def test_nothing_is_asked_without_budget_and_all_is_paid_for():
    world = World()
    world.run()
    assert world.model.asked == []
    world.run(tokens=1)
    assert len(world.model.asked) == 3  # a round is begun while anything is left, and then paid back
    world.run(tokens=2_000)
    assert world.purse.spent == 10 * len(world.model.asked)
    assert 2_001 <= world.purse.spent < 2_001 + 8 * 30


def test_verdicts_are_reached_and_said_once():
    world = World(tokens=60_000)
    world.model.wrong = {"m:s20": 0.3}
    world.run()
    assert [(name, before, after) for name, before, after, _ in world.verdicts] == [
        ("m:s20", Verdict.UNPROVEN, Verdict.DEGRADED),
        ("m:s10", Verdict.UNPROVEN, Verdict.SAFE),
    ]
    assert world.verdicts[0][3].drop_low > 0.03
    assert [change.after for change in world.prober.changes("m:s20")] == [Verdict.DEGRADED]
    assert world.prober.evidence("m:s0").verdict is Verdict.SAFE
    assert world.prober.evidence("m:s0").drop_high == 0.0


def test_a_variant_breaks_and_is_mended():
    world = World(tokens=30_000)
    world.run()
    world.model.wrong = {"m:s20": 0.9}
    world.run(tokens=3_000)
    world.model.wrong = {}
    world.run(tokens=30_000)
    assert [after for name, _, after, _ in world.verdicts if name == "m:s20"] == [
        Verdict.SAFE,
        Verdict.DEGRADED,
        Verdict.SAFE,
    ]


def test_the_reference_is_the_densest_that_is_served():
    world = World(tokens=6_000, subjects=(S20, S10))
    world.model.wrong = {"m:s10": 0.5}
    world.run()
    assert world.prober.evidence("m:s10").verdict is Verdict.SAFE
    assert world.prober.evidence("m:s10").accuracy == pytest.approx(0.5, abs=0.15)
    assert world.prober.evidence("m:s20").drop < -0.3


@pytest.mark.parametrize("finite", [None, 40])
def test_outcomes_are_judged_in_the_order_of_the_items(finite):
    world = World(tokens=2_000, task=NumbersTask(finite))
    world.run()
    asked = list(dict.fromkeys(p.removeprefix("item ") for p, _ in world.model.asked))
    key = world.prober._key(S10, DENSE)
    assert [o.item_id for o in world.store.read(key).outcomes][: len(asked)] == asked


def test_a_failed_answer_is_no_outcome_and_the_rest_counts():
    world = World(tokens=3_000)
    world.model.broken = {"m:s20"}
    world.run()
    assert world.prober.evidence("m:s20").items == 0
    assert world.prober.evidence("m:s10").items == world.prober.evidence("m:s0").items > 90
    assert world.verdicts == []


def test_without_the_reference_nothing_can_be_compared():
    world = World(tokens=1_000)
    world.model.broken = {"m:s0"}
    world.run()
    assert [world.prober.evidence(s.name).items for s in world.subjects] == [0, 0, 0]


def test_a_dead_engine_is_asked_less_and_less_until_it_answers(caplog):
    world = World(tokens=1_000)
    world.model.broken, world.patience = {"m:s0", "m:s10", "m:s20"}, 12
    world.run()
    assert world.pauses == sorted(world.pauses)
    assert world.pauses[-1] == 60.0
    assert caplog.text.count("no probe was answered") == 1
    world.model.broken, world.patience = set(), 1
    world.run()
    assert world.prober.evidence("m:s20").items > 0


def test_variants_come_and_go():
    world = World(tokens=1_500, subjects=(DENSE, S10))
    world.run()
    assert world.prober.evidence("m:s20") is None
    world.subjects.append(S20)
    world.run(tokens=1_500)
    world.subjects.remove(S10)
    items = world.prober.evidence("m:s20").items
    assert 0 < items < world.prober.evidence("m:s0").items
    assert world.prober.evidence("m:s10") is None
    world.run(tokens=1_500)
    assert world.prober.evidence("m:s20").items > items
    world.subjects.clear()
    world.run(tokens=1_500)
    world.subjects += [DENSE, S10]
    assert world.prober.evidence("m:s10").items > 0


def test_a_finite_task_is_walked_through_before_anything_is_asked_again():
    world = World(tokens=1_000_000, task=NumbersTask(100))
    world.run_now(items=100)
    assert set(world.model.by_variant().values()) == {100}
    evidence = world.prober.evidence("m:s10")
    assert (evidence.items, evidence.repeats) == (100, 0)
    world.run_now(items=250)
    evidence = world.prober.evidence("m:s10")
    assert (evidence.items, evidence.repeats) == (100, 250)
    assert len(set(world.model.asked)) == 300


def test_a_variant_that_comes_later_is_asked_all_of_a_finite_task():
    world = World(task=NumbersTask(60), subjects=(DENSE, S10))
    world.run_now(items=40)
    world.subjects.append(S20)
    world.run_now(items=60)
    assert [world.prober.evidence(s.name).items for s in world.subjects] == [60, 60, 60]


@pytest.mark.parametrize("at_once", [1, 8])
def test_an_item_that_nobody_can_answer_stops_nothing(at_once):
    """It is asked three times and left alone; all others are asked, and then again."""
    world = World(task=NumbersTask(40), subjects=(DENSE, S10))
    answer, bad = world.model.__call__, "item 7"

    async def generate(prompt, *, variant, max_tokens):
        if prompt == bad:
            world.model.asked.append((prompt, variant))
            raise GenerateError("it does not fit")
        return await answer(prompt, variant=variant, max_tokens=max_tokens)

    world.prober._generate = generate
    for _ in range(60 // at_once):
        world.run_now(items=at_once) if at_once > 1 else run_some(world)
    evidence = world.prober.evidence("m:s10")
    assert evidence.items == 39
    assert evidence.repeats > 0
    asked = Counter(prompt for prompt, variant in world.model.asked if variant == "m:s10")
    assert asked[bad] == 3


def test_many_items_that_nobody_can_answer_stop_nothing():
    """Neither a run nor the pace of probing."""
    world = World(task=NumbersTask(40), subjects=(DENSE, S10))
    answer = world.model.__call__

    async def generate(prompt, *, variant, max_tokens):
        if int(prompt.split()[1]) < 12:
            raise GenerateError("it does not fit")
        return await answer(prompt, variant=variant, max_tokens=max_tokens)

    world.prober._generate = generate
    run_some(world, rounds=40)
    assert world.prober.evidence("m:s10").items == 28
    world.run_now(items=100)
    assert world.prober.evidence("m:s10").items == 28
    assert world.prober.evidence("m:s10").repeats > 40


def run_some(world, rounds=1):
    """Rounds of one item each, be it answered or not."""
    for _ in range(rounds):
        asyncio.run(world.prober._round(world.subjects, 1, lambda tokens: None))


def test_what_answered_in_anothers_name_is_no_evidence():
    """A variant that is replaced by another of its name while it is asked."""
    new = Subject(S10.name, S10.sparsity, S10.widths, delta="new")
    world = World(task=NumbersTask(40), subjects=(DENSE, S10, S20))
    answer = world.model.__call__

    async def generate(prompt, *, variant, max_tokens):
        world.subjects[1] = new
        return await answer(prompt, variant=variant, max_tokens=max_tokens)

    world.prober._generate = generate
    world.run_now(items=8)
    assert world.prober.evidence(S20.name).items == 8
    assert world.prober.evidence(S10.name) is None or world.prober.evidence(S10.name).items == 0
    world.subjects[1] = S10
    assert world.prober.evidence(S10.name).items == 0
    world.subjects[1] = new
    world.run_now(items=8)
    assert world.prober.evidence(S10.name).items == 8


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


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_is_asked_at_once_than_finds_a_place(at_once):
    world, asking, most = World(at_once=at_once), 0, 0
    answer = world.model.__call__

    async def generate(prompt, *, variant, max_tokens):
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        found = await answer(prompt, variant=variant, max_tokens=max_tokens)
        asking -= 1
        return found

    world.prober._generate = generate
    world.run_now(items=16)
    assert most == at_once
    assert {evidence.items for evidence in map(world.prober.evidence, ("m:s0", "m:s10", "m:s20"))} == {16}


def test_answers_that_do_not_end_are_counted_as_traps():
    world = World()
    world.model.finish_reason, world.model.wrong = "loop", {"m:s20": 1.0}
    world.run_now(items=3)
    assert world.prober.evidence("m:s20").traps == {Trap.LOOP_BEFORE_ANSWER: 3}


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


def test_a_run_asks_whom_it_is_told_to_and_the_reference_whatever_the_budget():
    world, told = World(), []
    evidence = world.run_now(["m:s20"], 20, on_progress=lambda done, total: told.append((done, total)))
    assert world.model.by_variant() == {"m:s0": 20, "m:s20": 20}
    assert told == [(8, 20), (16, 20), (20, 20)]
    assert {name: e.items for name, e in evidence.items()} == {"m:s20": 20}
    assert world.purse.spent == 0


def test_a_run_goes_on_where_a_finite_task_begins_anew():
    world, told = World(task=NumbersTask(12)), []
    world.run_now(items=16, on_progress=lambda done, total: told.append(done))
    assert set(world.model.by_variant().values()) == {16}
    assert told == [8, 12, 16]


def test_a_run_of_all_tells_of_all():
    assert set(World().run_now(items=1)) == {"m:s0", "m:s10", "m:s20"}


@pytest.mark.parametrize(
    ("variants", "items", "told"),
    [
        (["m:s30"], 5, r"no variant 'm:s30'.*m:s0, m:s10, m:s20"),
        (None, 0, "1 to 1,000"),
        (None, MAX_RUN_ITEMS + 1, "1 to 1,000"),
    ],
)
def test_a_run_out_of_bounds_is_refused(variants, items, told):
    with pytest.raises(ProbeError, match=told):
        World().run_now(variants, items)


def test_a_run_that_nobody_answers_ends_with_an_error():
    world = World()
    world.model.broken = {"m:s0", "m:s10", "m:s20"}
    for _ in range(2):  # the first one has ended: the second is not refused
        with pytest.raises(ProbeError, match="after 0 of 5"):
            world.run_now(items=5)


def test_one_run_at_a_time_and_the_loop_goes_on_beside_it():
    world = World(tokens=3_000)

    async def both():
        first = asyncio.create_task(world.prober.run_now(items=60))
        await asyncio.sleep(0)
        with pytest.raises(ProbeError, match="going on already"):
            await world.prober.run_now(items=1)
        with pytest.raises(SpentError):
            await world.prober.run()
        await first

    asyncio.run(both())
    counts = set(world.model.by_variant().values())
    assert len(counts) == 1
    assert world.prober.evidence("m:s10").items == counts.pop() >= 160
    assert len(set(world.model.asked)) == len(world.model.asked)


def test_cancelling_ends_it_at_once_and_leaves_nothing_behind():
    world = World(tokens=10**9)

    async def cancelled():
        task = asyncio.create_task(world.prober.run())
        while len(world.model.asked) < 50:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())


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


def test_only_the_event_loop_is_asked_who_is_served():
    world, threads = World(tokens=200), set()
    served = world.subjects

    def subjects():
        threads.add(threading.get_ident())
        return served

    world.prober._subjects = subjects

    async def everything():
        await world.prober.refresh()
        await world.prober.run_now(items=3)
        with pytest.raises(SpentError):
            await world.prober.run()

    asyncio.run(everything())
    assert threads == {threading.get_ident()}


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
