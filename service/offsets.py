"""Where an answer lies, in the units of the caller's language: Python counts code points, JavaScript UTF-16 units."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from service.schemas import Answer, Entity, OffsetUnit

Placed = TypeVar("Placed", Answer, Entity)

# Code points from here on are two units in UTF-16.
FIRST_OF_TWO_UNITS = 0x10000


def in_unit(unit: OffsetUnit, text: str, entries: Sequence[Placed]) -> list[Placed]:
    """Return entries whose `start` and `end` are code points of `text` with offsets in `unit`."""
    if unit == "code_point" or text.isascii():
        return list(entries)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    before = np.concatenate(([0], np.cumsum(points >= FIRST_OF_TWO_UNITS)))
    return [
        entry.model_copy(
            update={"start": entry.start + int(before[entry.start]), "end": entry.end + int(before[entry.end])}
        )
        for entry in entries
    ]
