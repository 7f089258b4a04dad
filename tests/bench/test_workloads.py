"""All servers are asked the same, and nothing twice."""

import string

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE

from bench.workloads import CONCURRENCY, Workloads
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer().backend_tokenizer


@pytest.fixture
def workloads():
    return Workloads(TOKENIZER, seed=0)


def test_the_same_seed_asks_the_same():
    first, second = Workloads(TOKENIZER, seed=3), Workloads(TOKENIZER, seed=3)
    assert first.batch() == second.batch()
    assert first.long_prompt() == second.long_prompt()


def test_no_two_prompts_begin_alike(workloads):
    asks = [*workloads.batch(), *workloads.batch(), workloads.single(), workloads.long_prompt()]
    beginnings = {ask.prompt.partition("]")[0] for ask in asks}
    assert len(beginnings) == len(asks) == 2 * CONCURRENCY + 2


def test_more_streams_are_asked_the_same_problems_again(workloads):
    asks = [ask.prompt.partition("]")[2] for ask in workloads.batch(count=128)]
    assert asks == asks[:CONCURRENCY] * 4


def joining_tokenizer() -> Tokenizer:
    """Joins line ends, so that a text has fewer tokens within a prompt than alone."""
    vocabulary = [*string.printable, "\n\n"]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, [("\n", "\n")]))
    tokenizer.decoder = Fuse()
    return tokenizer


@pytest.mark.parametrize("num_tokens", [200, 1024, 4096])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, joining_tokenizer()], ids=["bytes", "joining"])
def test_a_long_prompt_has_exactly_so_many_tokens(tokenizer, num_tokens):
    ask = Workloads(tokenizer, seed=0).long_prompt(num_tokens, new_tokens=3)
    assert len(tokenizer.encode(ask.prompt, add_special_tokens=False).ids) == num_tokens
    assert ask.max_tokens == 3


def test_sparsities_are_dealt_evenly(workloads):
    asked = [ask.fields["sparsity"] for ask in workloads.batch((0.0, 0.5))]
    assert asked == [0.0, 0.5] * (CONCURRENCY // 2)
    assert all(ask.fields == {} for ask in workloads.batch())
