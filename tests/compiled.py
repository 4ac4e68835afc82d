"""Looking into the compiled program."""

import math
import re

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


def collectives(compiled):
    """All exchanges between devices: how many numbers each kind sends, if there is any."""
    sent = {}
    for line in compiled.as_text().splitlines():
        found = re.search(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
        if found:
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            numbers = sum(math.prod(map(int, re.findall(r"\d+", s))) for s in shapes)
            sent[found[2]] = sent.get(found[2], 0) + numbers
    return sent
