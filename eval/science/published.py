"""What arXiv 2604.27115 publishes of Qwen2.5-Coder-1.5B-Instruct on HumanEval, before and after training."""

PAPER = "arXiv 2604.27115"
PAPER_MODEL, PAPER_TASK = "coder-1.5b", "humaneval"
PAPER_METHOD = "selectivity"  # the paper's own score
RANDOM_METHODS = ("random-42", "random-33")  # with the paper's seeds

DENSE_ACCURACY = 0.6280
# Share of the MLP neurons removed -> pass@1, by the paper's own score.
ACCURACY = {0.1: 0.4512, 0.2: 0.3293, 0.3: 0.1951, 0.35: 0.0671}
# The same after fine-tuning with LoRA.
TRAINED_ACCURACY = {0.1: 0.5061, 0.2: 0.4451, 0.3: 0.3232, 0.35: 0.3110}


def published_retention(sparsity: float, *, trained: bool = False) -> float:
    """Share of the dense model's accuracy that is left, or that is there again after training."""
    return (TRAINED_ACCURACY if trained else ACCURACY)[sparsity] / DENSE_ACCURACY
