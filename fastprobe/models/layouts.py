"""The layout of a layer: where its attention and its FFN are, and how they are added to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from fastprobe.models.places import Place


@dataclass(frozen=True)
class Part:
    """The attention (or another mixer of tokens) or the FFN (or experts) of a layer.

    With m the state before it and f its module, the state after it is ``norm(skip * m + scale * norm(f(norm(m))))``,
    where each norm may be missing. Paths are relative to the layer; "" means that there is no such module.
    """

    out: str
    """Module whose output is f, before a norm of it."""
    norm: str = ""
    """Norm of the state before the module."""
    proj: str = ""
    """Last matrix of f."""
    post_norm: str = ""
    """Norm of f before it is added."""
    sum_norm: str = ""
    """Norm of the residual sum."""
    adds: str = ""
    """Module that adds the skip connection, where it is no plain sum."""
    scale: float = 1.0
    """Factor of f."""
    skip: float = 1.0
    """Factor of the state."""
    skips_norm: bool = False
    """The skip connection begins after ``norm``."""

    @property
    def added(self) -> str:
        """Module whose output is added to the residual stream."""
        return self.post_norm or self.out


@dataclass(frozen=True)
class Layout:
    """Parts that were found inside one layer."""

    attn: Part | None = None
    mlp: Part | None = None
    parallel: bool = False
    """Attention and FFN read one state, so there is no state between them."""
    mid: Place | None = None
    """Place where the state between attention and FFN is read."""
    others: int = 0
    """Sub-layers besides these two, such as cross-attention."""
    changed: frozenset[str] = frozenset()
    """Modules whose input or output the layer changes in place afterwards; "" for the layer itself."""
    reason: str = ""
    """Reason why a part is missing."""

    @property
    def attention(self) -> str:
        """Path of the largest module that holds the attention and not the FFN; "" if no attention was found."""
        if self.attn is None:
            return ""
        names, ffn = self.attn.out.split("."), self.mlp.out if self.mlp is not None else ""
        roots = [".".join(names[: depth + 1]) for depth in range(len(names))]
        return next((root for root in roots if not f"{ffn}.".startswith(f"{root}.")), self.attn.out)

    @property
    def has_ffn(self) -> bool:
        """True if the layer has an FFN that was found."""
        return self.mlp is not None

    @property
    def form(self) -> str:
        """Description of the layer in a few words."""
        parts = [part for part in (self.attn, self.mlp) if part is not None]
        if not parts:
            return "inside not understood" + (f" ({self.reason})" if self.reason else "")
        names = " and ".join(name for name, part in (("attention", self.attn), ("FFN", self.mlp)) if part is not None)
        norms = [
            where
            for where, has in (
                ("before", any(part.norm for part in parts)),
                ("after", any(part.post_norm for part in parts)),
                ("after the sum", any(part.sum_norm for part in parts)),
            )
            if has
        ]
        text = names + (", in parallel" if self.parallel else "")
        text += f", norm {' and '.join(norms)}" if norms else ", without norm"
        return text + (f", and {self.others} more" if self.others else "")
