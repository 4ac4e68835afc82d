"""Does the package stand alone? Runs the README's code and every doctest of the package.

For a Python that has the wheel and what that depends on, and nothing of this folder::

  cd "$(mktemp -d)"
  python -I .../tests/installed.py .../README.md

The exit status is 1 if any of them fails.
"""

import doctest
import importlib
import importlib.metadata
import pkgutil
import re
import sys
from pathlib import Path

import snn_dropout


def main(readme: Path) -> None:
    folder = Path(snn_dropout.__file__).parent
    if not folder.is_relative_to(sys.prefix):
        sys.exit(f"{folder} is not installed into {sys.prefix}")
    version = importlib.metadata.version("snn_dropout")
    if version != snn_dropout.__version__:
        sys.exit(f"{version} is installed, and says it is {snn_dropout.__version__}")

    names = {"__name__": "readme"}
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)

    modules = pkgutil.walk_packages(snn_dropout.__path__, "snn_dropout.")
    failed = attempted = 0
    for name in ("snn_dropout", *(module.name for module in modules)):
        result = doctest.testmod(importlib.import_module(name))
        failed, attempted = failed + result.failed, attempted + result.attempted
    print(f"{version}: {len(blocks)} README blocks, {attempted} lines of examples")
    if failed or not blocks or not attempted:
        sys.exit(f"{failed} lines failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
