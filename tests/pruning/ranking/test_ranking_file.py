from pathlib import Path

import pytest
import torch

from pruning.errors import RankingError
from pruning.ranking import ranking_file
from pruning.ranking.ranking import rank
from pruning.ranking.ranking_file import SavedRanking, load_ranking
from tests.pruning.calibration.tiny_profiles import tiny_provenance

RANKING = rank(torch.tensor([[1.0, 5.0, 3.0], [4.0, 4.0, 0.0]]), score="taylor2 in steps", profile_digest="p")
SAVED = SavedRanking(RANKING, "global", (0.0, 0.05), tiny_provenance())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    SAVED.save(tmp_path / "new" / "r.safetensors")
    loaded = load_ranking(tmp_path / "new" / "r.safetensors")

    assert torch.equal(loaded.ranking.permutation, RANKING.permutation)
    assert torch.equal(loaded.ranking.global_position, RANKING.global_position)
    assert loaded.ranking.digest == RANKING.digest
    assert (loaded.allocation, loaded.measured_at, loaded.provenance) == (
        SAVED.allocation,
        SAVED.measured_at,
        SAVED.provenance,
    )


def test_the_model_that_was_measured_is_accepted() -> None:
    SAVED.check(model=SAVED.provenance.model, tokenizer=SAVED.provenance.tokenizer)


@pytest.mark.parametrize("which", ["model", "tokenizer"])
def test_another_model_or_tokenizer_is_refused_by_name(which: str) -> None:
    in_use = {"model": SAVED.provenance.model, "tokenizer": SAVED.provenance.tokenizer, which: "d" * 20}

    with pytest.raises(RankingError, match=rf"another {which}.*d{{16}}; make one with: secateur rank"):
        SAVED.check(**in_use)


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    SAVED.save(path)
    content = path.read_bytes()
    for kept in (0, 4, 100, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(RankingError, match=r"damaged.*secateur rank"):
            load_ranking(path)
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(RankingError, match="does not match its digest"):
        load_ranking(path)


def test_a_missing_file_and_another_format_name_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RankingError, match=r"no ranking .*absent.*secateur rank"):
        load_ranking(tmp_path / "absent")
    monkeypatch.setattr(ranking_file, "FORMAT", 0)
    SAVED.save(tmp_path / "r.safetensors")
    monkeypatch.undo()
    with pytest.raises(RankingError, match="has format 0; this version reads 1"):
        load_ranking(tmp_path / "r.safetensors")
