"""Does the built site have every public name? Reads the index of its search.

Run from the root of the project::

  python docs/check_site.py build/site

The search finds a name if all of its words are words of the title of its entry in the
reference; the entry has to open with the arguments. No entry may show the markup of a
docstring. The exit status is 1 if something fails.
"""

import json
import re
import sys
from pathlib import Path

import snn_dropout as sd
from snn_dropout import functional, nnx

# Kinds of values, which nobody calls by arguments of their own.
WITHOUT_ARGUMENTS = {"nnx.HeldMask"}


def words_of(text: str, separator: str) -> set[str]:
    """The words of a text, as the search of the site has them."""
    return {word.lower() for word in re.split(separator, text) if word}


def faults_of(index: dict) -> list[str]:
    """What is wrong with the entries of the public names in an index of the search."""
    separator = index["config"]["separator"]
    entries = {entry["location"]: entry for entry in index["docs"]}
    faults = []
    for name in public_names():
        entry = entries.get(f"reference/#snn_dropout.{name}", {"title": "", "text": ""})
        last = name.split(".")[-1]
        # Alone, as a person types it, and with the modules in front of it.
        for typed in (last, name, f"snn_dropout.{name}"):
            if not words_of(typed, separator) <= words_of(entry["title"], separator):
                faults.append(f"the search does not find `{typed}`")
        if name not in WITHOUT_ARGUMENTS and f"<code>{last}(" not in entry["text"][:80]:
            faults.append(f"the reference does not say the arguments of `{name}`")
    for location, entry in entries.items():
        if re.search(r":(func|class|meth|mod):", entry["text"]):
            faults.append(f"{location} shows the markup of a docstring")
    return faults


def public_names() -> list[str]:
    """All public names, as they stand behind ``snn_dropout.``."""
    names = [name for name in sd.__all__ if name != "functional"]
    names += [f"functional.{name}" for name in functional.__all__]
    return names + [f"nnx.{name}" for name in nnx.__all__]


def main(site: Path) -> None:
    """Raises ``SystemExit`` with all faults, or says that there are none."""
    index = json.loads((site / "search" / "search_index.json").read_text())
    if faults := faults_of(index):
        sys.exit("\n".join(faults))
    print(f"the search finds all of {len(public_names())} names, with their arguments")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
