"""Writes a task of MBPP as HumanEval writes its own: a function begun, with its purpose and examples.

What a model is measured on should look like what it is asked later. HumanEval's problems are not to be
measured on, so MBPP's take their form.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from textwrap import fill, indent

from eval.tasks.code import parsed

ASKS_FOR_A_FUNCTION = re.compile(r"write a (python )?function( to| that| which)? ", re.IGNORECASE)
DOCSTRING_COLUMNS = 80
INDENT = "    "


def stub(text: str, code: str, tests: Iterable[str]) -> str | None:
    """The signature and docstring of the function that `text` asks for; None where they cannot be told.

    Args:
        text: what the function does, in words.
        code: a solution. Only its signature is shown.
        tests: lines ``assert f(...) == value``; those of literals become examples.
    """
    functions = {node.name: node for node in parsed(code) or () if isinstance(node, ast.FunctionDef)}
    examples = [example for example in _examples(tests) if example[0] in functions]
    if not examples:
        return None
    name = examples[0][0]
    purpose = ASKS_FOR_A_FUNCTION.sub("", text.strip(), count=1)
    shown = "\n".join(f">>> {call}\n{value}" for called, call, value in examples if called == name)
    docstring = f'"""{purpose[:1].upper()}{purpose[1:]}'
    body = f"{fill(docstring, DOCSTRING_COLUMNS - len(INDENT))}\n\n{shown}\n" + '"""'
    return f"def {name}({ast.unparse(functions[name].args)}):\n{indent(body, INDENT)}"


def _examples(tests: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """The function called, the call and its value: of tests that say ``assert f(literals) == literal``."""
    for test in tests:
        match parsed(test.strip()):
            case [
                ast.Assert(
                    test=ast.Compare(
                        left=ast.Call(func=ast.Name(id=name), args=args, keywords=[]) as call,
                        ops=[ast.Eq()],
                        comparators=[value],
                    )
                )
            ] if all(map(_is_literal, [*args, value])):
                yield name, ast.unparse(call), ast.unparse(value)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):  # names and calls; literals that cannot be made, as {[]: 1}
        return False
    return True
