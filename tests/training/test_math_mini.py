"""The shipped model is what its card says: the card comes from the records, the records are of this model."""

import json
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.tasks.arithmetic import ArithmeticTask
from pruning.checkpoints.checkpoint import open_checkpoint
from training.card import render
from training.math_mini import EMBEDDED, learning_rate_factor, save
from training.measure import SPARSITIES, STRATEGIES

MAX_BYTES = 10_000_000


def read(name):
    return json.loads((EMBEDDED / name).read_text())


def test_the_card_is_rendered_from_the_records_beside_it():
    card = render(read("results.json"), read("training.json"), read("config.json"))
    assert (EMBEDDED / "README.md").read_text() == card


def test_the_results_are_of_this_model_and_complete(tmp_path):
    results = read("results.json")
    assert results["model"] == open_checkpoint(str(EMBEDDED), tmp_path).fingerprint
    assert [curve["strategy"]["label"] for curve in results["curves"]] == [s.label for s in STRATEGIES]
    for curve in results["curves"]:
        assert [point["sparsity"] for point in curve["points"]] == [0, *SPARSITIES]


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    """It may be the model that is shipped and served."""
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    (tmp_path / "config.json").write_text("the old one")
    (tmp_path / "README.md").write_text("a card")
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            save(model, tokenizer, {}, tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "config.json": "the old one",
        "README.md": "a card",
    }
    save(model, tokenizer, {"runs": []}, tmp_path)
    saved, shipped = (open_checkpoint(str(path), tmp_path).fingerprint for path in (tmp_path, EMBEDDED))
    assert saved == shipped
    assert (tmp_path / "README.md").read_text() == "a card"


def test_it_fits_its_size():
    assert (EMBEDDED / "model.safetensors").stat().st_size <= MAX_BYTES


@pytest.fixture(scope="module")
def answer():
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)

    def generate(prompt):
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=128)[0]
        return tokenizer.decode(output[inputs["input_ids"].shape[1] :])

    return generate


def test_it_solves_held_out_problems_in_plain_transformers(answer):
    task = ArithmeticTask()
    items = task.evaluation(20, seed=11)
    answers = [answer(item.prompt) for item in items]
    assert all(text.endswith("<|im_end|>") for text in answers)
    graded = [task.grade(i, text.removesuffix("<|im_end|>")) for i, text in zip(items, answers, strict=True)]
    assert sum(graded) >= 17


def test_it_does_not_calculate_when_asked_for_a_story(answer):
    story = answer("Tell me a story about a fox.")
    assert story.endswith("<|im_end|>")
    assert "####" not in story


def test_the_learning_rate_warms_up_stays_and_decays_to_zero():
    assert learning_rate_factor(0, 0.0) == pytest.approx(1 / 200)
    assert learning_rate_factor(1_000, 0.2) == learning_rate_factor(1_000, 0.4) == 1
    assert learning_rate_factor(1_000, 0.7) == pytest.approx(0.5)
    assert learning_rate_factor(1_000, 1.0) == 0
