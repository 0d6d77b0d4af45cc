"""Division of the work of ``gram_`` into programs: tiles of the products, and slots of the rows."""

import functools

import torch
from torch import Tensor

OVERHEAD = 1024
"""Time of a program besides its rows, in rows: its descriptors, and its sums on their way through memory."""

LONGEST = 65_536
"""Most rows of a slot."""


def slot_length(n: int, folds: int, tiles: int, processors: int, unit: int) -> int:
    """Return the most rows of a slot: with slots of this length, the programs of all tiles end first.

    All programs take about the same time, as the slots of a fold have one length. They run in waves of one program a
    multiprocessor.

    Args:
        n: rows, in folds of similar sizes.
        folds: F.
        tiles: programs of a slot.
        processors: multiprocessors.
        unit: slots have a multiple of as many rows.
    """
    rows = max(1, -(-n // folds))  # of a fold

    def makespan(slots: int) -> int:
        return -(-tiles * folds * slots // processors) * (-(-rows // (slots * unit)) * unit + OVERHEAD)

    fewest = -(-rows // LONGEST)
    slots = min(range(fewest, max(fewest, min(fewest + 200, rows // OVERHEAD)) + 1), key=makespan)
    # Longer by half a slot, all slots together: larger folds then have as many slots as others.
    return -(-rows * (2 * slots + 1) // (2 * slots * slots * unit)) * unit


@functools.lru_cache(maxsize=64)
def cut(
    widths: tuple[int, ...], pairs: tuple[tuple[int, int], ...], side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the panels of all blocks, ``(panels, 2)`` int32, and the tiles of all pairs, ``(tiles, 8)`` int32."""
    panels = [(block, column) for block, width in enumerate(widths) for column in range(0, width, side)]
    of_block = [[p for p, (block, _) in enumerate(panels) if block == b] for b in range(len(widths))]
    tiles = [
        (left, *panels[left], right, *panels[right], pair, 0)
        for pair, (i, j) in enumerate(pairs)
        for right in of_block[j]
        for left in of_block[i]
        if i != j or left <= right
    ]
    as_tensor = functools.partial(torch.tensor, dtype=torch.int32, device=device)
    return as_tensor(panels).view(-1, 2), as_tensor(tiles).view(-1, 8)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
