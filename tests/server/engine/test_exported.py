"""What other engines load answers as the variant that is served: on every family, with and without zeros."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pruning.export import export_checkpoint
from tests.server.engine.support import Loaded, generate, logit_gap, prompt
from tests.server.engine.test_laws import TIE


@pytest.mark.parametrize("widths", [(96, 96, 96), (160, 96, 32)])
def test_an_export_answers_as_the_served_variant(
    loaded: Loaded, widths: tuple[int, ...], tmp_path: Path
) -> None:
    variant = loaded.variant(widths)
    asked = [(prompt(seed, 20 + 17 * seed), variant) for seed in range(4)]
    outputs = generate(loaded.engine(), asked)
    export_checkpoint(
        loaded.checkpoint, loaded.ranking, widths, tmp_path / "out", dtype=None, card="", progress=False
    )
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for (token_ids, _), output in zip(asked, outputs, strict=True):
        assert logit_gap(exported, token_ids, output) <= TIE
    # The widths matter: the whole model gives other answers.
    dense = loaded.reference(loaded.dense)
    assert max(logit_gap(dense, asked[i][0], outputs[i]) for i in range(4)) > 10 * TIE
