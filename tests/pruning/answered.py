"""What a checkpoint itself answers to calibration prompts, for what is measured along them."""

import torch

from pruning.calibration.answers import Answers
from pruning.calibration.calibration import CalibrationData, load_network
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint
from training.answers import own_answers


def answers_to(data: CalibrationData, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Answers:
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, prompt) for prompt in data.target]
    model = load_network(checkpoint, torch.device("cpu"), dtype)
    return own_answers(model, prompts, data.max_new_tokens, progress=False)
