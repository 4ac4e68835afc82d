"""The README's code blocks run as printed, in order, each in the names of those before."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    names = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)


def test_continuous_integration_calls_the_command_that_is_printed():
    """On one Python as it stands; on the other with all depth, a test in the next line."""
    assert "\npython -m pytest\n" in README
    commands = (ROOT / ".ci" / "run").read_text()
    assert re.search(r" python -m pytest\n", commands)
    assert re.search(
        r""" python -m pytest --exhaustive --deselect "\$quick"\n"""
        r""".*\n.* python -m pytest --exhaustive .*"\$quick"\n""",
        commands,
    )


def test_every_example_that_is_named_exists():
    named = re.findall(r"python (examples/\w+\.py)", README)
    assert {"examples/train_digits.py", "examples/dropconnect_inference.py"} <= set(named)
    assert all((ROOT / example).exists() for example in named)
