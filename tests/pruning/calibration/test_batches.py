import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.calibration.batches import TokenSequence, grouped, pad_batch

CPU = torch.device("cpu")


def test_a_batch_by_hand() -> None:
    batch = pad_batch(
        [TokenSequence((1, 2, 3), (4, 5)), TokenSequence((6, 7)), TokenSequence((8,), (9,))], CPU
    )

    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0], [8, 0, 0, 0]]
    assert batch.prompt_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch.answer_mask.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 4, 5], [-100] * 4, [9, -100, -100, -100]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]


tokens = st.lists(st.integers(1, 99), max_size=6).map(tuple)


@given(st.lists(st.tuples(tokens.filter(bool), tokens), min_size=1, max_size=5))
def test_every_answer_token_is_predicted_once_from_the_token_before_it(
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    sequences = [TokenSequence(prompt, answer) for prompt, answer in pairs]
    batch = pad_batch(sequences, CPU)

    for row, (prompt, answer) in enumerate(pairs):
        whole = prompt + answer
        predicted = (batch.labels[row] != -100).nonzero().flatten().tolist()
        assert predicted == [place - 1 for place in range(len(prompt), len(whole))]
        assert all(batch.input_ids[row, place] == whole[place] for place in predicted)
        assert all(batch.labels[row, place] == whole[place + 1] for place in predicted)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.integers(1, 8))
def test_groups_hold_everything_once_and_keep_their_limits(
    lengths: list[int], max_tokens: int, max_rows: int
) -> None:
    groups = list(grouped(lengths, max_tokens, max_rows))

    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        assert 1 <= len(group) <= max_rows
        assert padded <= max_tokens or len(group) == 1
