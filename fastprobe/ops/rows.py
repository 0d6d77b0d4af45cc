"""Row selection without a copy where the rows are adjacent."""

from torch import Tensor


def select_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Return ``rows[index]`` for an ascending index, (n, ...): a view where the rows are adjacent, else a copy."""
    if not len(index):
        return rows[:0]
    first, last = int(index[0]), int(index[-1])
    return rows[first : last + 1] if last - first + 1 == len(index) else rows.index_select(0, index)
