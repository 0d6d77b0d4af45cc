"""Exhaustive check of the ring of stages in ``csrc/cuda/gram.cuh``: a model of its threads, run in every order.

The model has the producer, the copy engine and two consumers, and an mbarrier as the PTX ISA defines it. Mutations
change one rule each; :func:`check` must find them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

BOXES = 2
"""Copies of a stage; they arrive in any order."""


class RingError(Exception):
    """The ring stops, or a stage is overwritten or read at the wrong time."""


class Barrier(NamedTuple):
    """State of an mbarrier: a phase ends when all arrivals and bytes are in."""

    pending: int
    bytes: int = 0
    phase: int = 0

    def changed(self, arrivals: int, size: int, count: int) -> "Barrier":
        pending, left = self.pending - arrivals, self.bytes + size
        return (
            Barrier(count, 0, (self.phase + 1) % 2) if (pending, left) == (0, 0) else Barrier(pending, left, self.phase)
        )


class State(NamedTuple):
    """The state of a block of threads. Positions are indices into the programs."""

    producer: int
    consumers: tuple[int, int]
    full: tuple[Barrier, ...]
    empty: tuple[Barrier, ...]
    holds: tuple[int, ...]  # boxes of its latest piece that have arrived in a stage
    flying: frozenset[tuple[int, int]]  # (piece, box)


@dataclass(frozen=True)
class Ring:
    """Rules of the ring."""

    stages: int
    pieces: int  # stages of a chain
    items: tuple[int, ...]  # chains of each item of work
    places: Callable[[int], list[tuple[int, int, int]]]  # n -> stage, full parity and empty parity of pieces 0 to n - 1
    expected: int = BOXES  # boxes that a full barrier waits for
    releases: int = 2  # arrivals that an empty barrier waits for
    early: bool = False  # a chain is released before its products are finished
    flipped: bool = False  # the producer waits for the wrong parity
    idle: bool = False  # the second consumer releases nothing


def _program(ring: Ring) -> list[tuple[str, int]]:
    """Return the steps of a consumer: wait for a piece, finish the products of a chain, release a piece."""
    steps = []

    def end(chain: int) -> Iterator[tuple[str, int]]:
        releases = [("release", chain * ring.pieces + piece) for piece in range(ring.pieces)]
        finish = [("finish", chain)]
        yield from releases + finish if ring.early else finish + releases

    first = 0
    for chains in ring.items:
        for chain in range(first, first + chains):
            steps += [("wait", chain * ring.pieces + piece) for piece in range(ring.pieces)]
            if chain > first:
                steps += end(chain - 1)
        first += chains
        steps += end(first - 1)
    return steps


def check(ring: Ring) -> int:
    """Run the model in every order, and return the number of its states.

    Raises:
        RingError: an order exists in which the ring fails.
    """
    program, total = _program(ring), sum(ring.items) * ring.pieces
    places = ring.places(total)
    finished = [program.index(("finish", piece // ring.pieces)) for piece in range(total)]

    def set_at(items: tuple, index: int, item: object) -> tuple:
        return (*items[:index], item, *items[index + 1 :])

    def steps(state: State) -> Iterator[State]:
        if state.producer < total:
            stage, _, parity = places[state.producer]
            if state.empty[stage].phase != parity ^ ring.flipped:
                before = state.producer - ring.stages
                if before >= 0 and any(at <= finished[before] for at in state.consumers):
                    raise RingError(f"piece {state.producer} overwrites piece {before}, which is read")
                yield state._replace(
                    producer=state.producer + 1,
                    full=set_at(state.full, stage, state.full[stage].changed(1, ring.expected, 1)),
                    holds=set_at(state.holds, stage, 0),
                    flying=state.flying | {(state.producer, box) for box in range(BOXES)},
                )
        for piece, box in state.flying:
            stage = places[piece][0]
            yield state._replace(
                full=set_at(state.full, stage, state.full[stage].changed(0, -1, 1)),
                holds=set_at(state.holds, stage, state.holds[stage] + 1),
                flying=state.flying - {(piece, box)},
            )
        for who, at in enumerate(state.consumers):
            if at == len(program):
                continue
            kind, piece = program[at]
            after = state._replace(consumers=set_at(state.consumers, who, at + 1))
            if kind == "finish":
                yield after
                continue
            stage, parity, _ = places[piece]
            if kind == "release":
                if not (ring.idle and who):
                    after = after._replace(
                        empty=set_at(state.empty, stage, state.empty[stage].changed(1, 0, ring.releases))
                    )
                yield after
            elif state.full[stage].phase != parity:
                if state.holds[stage] < BOXES or not state.producer - ring.stages <= piece < state.producer:
                    raise RingError(f"piece {piece} is read before it has arrived")
                yield after

    first = State(
        0, (0, 0), ring.stages * (Barrier(1),), ring.stages * (Barrier(ring.releases),), ring.stages * (0,), frozenset()
    )
    seen, left = {first}, [first]
    while left:
        state = left.pop()
        following = set(steps(state))
        if not following and (state.producer < total or any(at < len(program) for at in state.consumers)):
            raise RingError(f"everybody waits, at piece {state.producer} and steps {state.consumers}")
        left += following - seen
        seen |= following
    return len(seen)


def plain_places(stages: int, flips: bool = True) -> Callable[[int], list[tuple[int, int, int]]]:
    """Return the places of a ring: piece n is in stage n mod ``stages``, with parities by the number of the round."""
    return lambda n: [(i % stages, (i // stages & 1) * flips, (i // stages & 1) * flips ^ 1) for i in range(n)]


def mutations(ring: Ring) -> dict[str, Ring]:
    """Return rings with one wrong rule each."""
    return {
        "a chain is released before its products are finished": replace(ring, early=True),
        "the producer waits for the wrong parity": replace(ring, flipped=True),
        "parities do not change with the round": replace(ring, places=plain_places(ring.stages, flips=False)),
        "a full barrier waits for one box less": replace(ring, expected=BOXES - 1),
        "an empty barrier waits for one consumer": replace(ring, releases=1),
        "a consumer releases nothing": replace(ring, idle=True),
    }
