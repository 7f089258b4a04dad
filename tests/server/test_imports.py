"""What a server imports before it can answer: seconds and memory of every start."""

from tests.processes import printed_by


def test_serving_imports_none_of_transformers_networks() -> None:
    """Nor what they bring along: together a second of processor time and 80 MB."""
    script = (
        "import sys\nimport server.commands.serve\n"
        "left_out = {'transformers.modeling_utils', 'transformers.activations', 'torch._dynamo'}\n"
        "print(left_out & set(sys.modules))"
    )
    assert printed_by(script) == "set()\n"


def test_a_command_imports_no_other() -> None:
    script = (
        "import sys\nfrom server.__main__ import _imported\nfrom server.settings import ServeSettings\n"
        "_imported(ServeSettings(model='any'))\n"
        "print(sorted(name for name in sys.modules if name.startswith('server.commands.')))"
    )
    assert printed_by(script) == "['server.commands.serve']\n"


def test_what_schedules_imports_no_torch() -> None:
    script = (
        "import sys\nimport server.engine.scheduler, server.engine.kv_cache, server.engine.lookup\n"
        "print('torch' in sys.modules)"
    )
    assert printed_by(script) == "False\n"
