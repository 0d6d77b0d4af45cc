"""The figure that plots return."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A Matplotlib figure that a notebook shows without pyplot and without a choice of backend."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png")
        return stream.getvalue()
