from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.calibration.calibration import Calibration, CalibrationData, start_calibration
from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.errors import RankingError
from pruning.ranking.masking import keeping
from pruning.ranking.ranking import rank
from pruning.ranking.scores import SCORES
from pruning.ranking.stepwise import Steps, StepsSoFar, load_steps, rank_in_steps, reordered
from pruning.ranking.widths import Allocation, widths_at
from tests.pruning.answered import answers_to
from tests.tiny import tiny_checkpoint

LAYERS, NEURONS = 3, 192
DATA = CalibrationData(("one and one", "2 + 3 * 4 ="), ("once upon a time",), seed=7, max_new_tokens=8)
TAYLOR2 = SCORES["taylor2"]
ALLOCATIONS: tuple[Allocation, ...] = ("global", "uniform")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    checkpoint = open_checkpoint(str(path), path)
    answers = answers_to(DATA, checkpoint)
    return start_calibration(checkpoint, "sums", DATA, answers, device="cpu", dtype=torch.float32)


def unkept(_: StepsSoFar) -> None:
    pass


@pytest.mark.parametrize(
    ("step", "max_sparsity", "measured_at"),
    [
        (0.05, 0.2, (0, 0.05, 0.1, 0.15)),
        (0.1, 0.25, (0, 0.1, 0.2)),
        (0.1, 0.3, (0, 0.1, 0.2)),
        (0.5, 0.1, (0,)),
    ],
)
def test_it_is_measured_until_the_last_step_reaches_the_end(
    step: float, max_sparsity: float, measured_at: tuple[float, ...]
) -> None:
    assert Steps(step, max_sparsity, "global").measured_at == pytest.approx(measured_at)


def test_reordering_by_hand() -> None:
    position = torch.tensor([[0, 1, 2], [3, 4, 5]])  # the neuron at place 5 is gone
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.5, 9.0]])

    assert reordered(position, 5, scores, "global").tolist() == [[3, 1, 2], [0, 4, 5]]
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.5, 0.7]])
    assert reordered(position, 6, scores, "uniform").tolist() == [[4, 0, 2], [1, 5, 3]]


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99), st.lists(st.floats(0, 0.99), max_size=4))
def test_what_is_gone_stays_where_it_is_and_what_is_left_goes_by_score(
    layers: int, neurons: int, seed: int, sparsities: list[float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for allocation in ALLOCATIONS:
        position = torch.arange(layers * neurons).view(layers, neurons)
        steps = Steps(0.5, 0.5, allocation)
        for sparsity in (0.0, *sorted(sparsities)):
            kept = steps.num_kept(sparsity, layers, neurons)
            scores = torch.randint(0, 5, (layers, neurons), generator=generator).double()
            new = reordered(position, kept, scores, allocation)

            is_kept = position < kept
            assert torch.equal(new[~is_kept], position[~is_kept])
            assert sorted(new.flatten().tolist()) == list(range(layers * neurons))
            for layer in range(layers):
                best_first = new[layer][is_kept[layer]].argsort()
                assert bool((scores[layer][is_kept[layer]][best_first].diff() <= 0).all())
            if allocation == "uniform":
                assert is_kept.sum(dim=1).tolist() == [kept // layers] * layers
            position = new


@pytest.mark.parametrize("name", ["taylor2", "wanda"])
def test_one_step_is_the_ranking_of_the_dense_model(calibration: Calibration, name: str) -> None:
    score = SCORES[name]
    saved = rank_in_steps(
        calibration, score, Steps(0.5, 0.5, "global"), start=None, on_step=unkept, progress=False
    )
    profile = calibration.measure(progress=False)
    expected = rank(score.compute(profile), score=name, profile_digest=profile.digest)

    assert torch.equal(saved.ranking.permutation, expected.permutation)
    assert torch.equal(saved.ranking.global_position, expected.global_position)
    assert saved.ranking.profile_digest == profile.digest
    assert saved.measured_at == (0,)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_later_neurons_are_judged_without_the_earlier_ones(
    calibration: Calibration, allocation: Allocation
) -> None:
    steps = Steps(0.25, 0.75, allocation)
    seen: list[StepsSoFar] = []
    saved = rank_in_steps(calibration, TAYLOR2, steps, start=None, on_step=seen.append, progress=False)

    position = seen[0].position
    for number, sparsity in ((1, 0.25), (2, 0.5)):
        kept = position < steps.num_kept(sparsity, LAYERS, NEURONS)
        assert int((~kept).sum()) == round(sparsity * LAYERS * NEURONS)
        with keeping(calibration.model, kept):
            scores = TAYLOR2.compute(calibration.measure(progress=False))
        assert bool((scores[~kept] == 0).all())
        assert bool((scores[kept] > 0).any())
        position = reordered(position, int(kept.sum()), scores, allocation)
        assert torch.equal(seen[number].position, position)
    assert torch.equal(position.sort(dim=1).values, saved.ranking.global_position)
    assert saved.ranking.profile_digest == calibration.measure(progress=False).digest  # of the whole model
    assert not torch.equal(seen[0].position, position)  # the measurements differ
    widths = [widths_at(saved.ranking, sparsity, allocation) for sparsity in (0.1, 0.25, 0.4, 0.6)]
    for wide, narrow in pairwise(widths):
        assert all(kept >= fewer for kept, fewer in zip(wide, narrow, strict=True))


class KilledError(Exception):
    pass


def test_an_interrupted_ranking_goes_on_where_it_was(calibration: Calibration, tmp_path: Path) -> None:
    steps, path = Steps(0.2, 0.6, "global"), tmp_path / "steps"
    whole = rank_in_steps(calibration, TAYLOR2, steps, start=None, on_step=unkept, progress=False)

    def killed_after_two(so_far: StepsSoFar) -> None:
        so_far.save(path, "key")
        if so_far.done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        rank_in_steps(calibration, TAYLOR2, steps, start=None, on_step=killed_after_two, progress=False)
    start = load_steps(path, "key")
    assert start is not None
    done: list[int] = []
    resumed = rank_in_steps(
        calibration,
        TAYLOR2,
        steps,
        start=start,
        on_step=lambda so_far: done.append(so_far.done),
        progress=False,
    )
    assert done == [3]
    assert resumed.ranking.digest == whole.ranking.digest


def test_steps_of_something_else_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    assert load_steps(path, "key") is None
    StepsSoFar(1, torch.arange(6).view(2, 3), "p").save(path, "key")
    with pytest.raises(RankingError, match=r"another model, data or settings.*--force"):
        load_steps(path, "other")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RankingError, match=r"damaged.*--force"):
        load_steps(path, "key")
