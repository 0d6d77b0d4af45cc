"""Batches that are split among processes already: by a distributed sampler, or by ``split_dataset_by_node``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, SequentialSampler

from fastprobe.errors import InputError
from fastprobe.runtime.distributed import Ranks

REMEDY = "pass the same batches to every process, which takes its share of them"


class Split(NamedTuple):
    """Numbers of the sequences of one process, in the stream of all processes: start, start + step, ..."""

    start: int | None = None
    """``None``: rounds number the sequences, one batch of each process in turn."""
    step: int = 1
    stop: int | None = None
    """Sequences of the stream; a sampler repeats some to fill up, which have this number or a larger one."""


def split_of(batches: Iterable[Any], ranks: Ranks) -> Split | None:
    """Return how batches are split among processes, or ``None`` if every process has all of them.

    A dataset of ``datasets`` counts as split if the processes hold different ones.

    Args:
        batches: the argument of the user.
        ranks: the processes.

    Raises:
        InputError: the batches are split among another number of processes, or in a way that repeats or drops some.
    """
    if ranks.size == 1:
        return None
    chain = [*_sources(batches)]
    loader = next((one for one in chain if isinstance(one, DataLoader)), None)
    by_sampler = None if loader is None else _split_by_sampler(loader, ranks)
    datasets = [one for one in chain if hasattr(one, "_fingerprint") or hasattr(one, "_distributed")]
    by_dataset = _split_by_dataset(datasets[-1] if datasets else None, loader, ranks)
    ranks.agree("batches", (by_sampler is not None, by_dataset is not None), REMEDY)
    if by_sampler is not None and by_dataset is not None:
        raise InputError("batches: they are split twice, by their sampler and by split_dataset_by_node; leave one out")
    return by_sampler if by_dataset is None else by_dataset


def _sources(batches: Any) -> Iterator[Any]:
    """Yield an argument of the user and what it reads from, outermost first."""
    while batches is not None:
        yield batches
        names = ("source", "batches", "text", "dataset")
        batches = next((getattr(batches, name) for name in names if hasattr(batches, name)), None)


def _split_by_sampler(loader: DataLoader, ranks: Ranks) -> Split | None:
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if hasattr(loader.batch_sampler, "num_processes") or hasattr(loader.dataset, "num_processes"):
        raise InputError(
            "batches: a DataLoader that Accelerate has prepared may repeat sequences; pass the one before prepare()"
        )
    if not hasattr(sampler, "num_replicas"):
        return None
    if (sampler.num_replicas, sampler.rank) != (ranks.size, ranks.rank):
        raise InputError(
            f"batches: their sampler is that of process {sampler.rank} of {sampler.num_replicas}, and this is process "
            f"{ranks.rank} of {ranks.size}"
        )
    total = len(sampler.dataset)
    if (dropped := total - sampler.total_size) > 0:
        raise InputError(f"batches: their sampler drops {dropped} of {total} sequences; set its drop_last=False")
    return Split(ranks.rank, ranks.size, total)


def _split_by_dataset(dataset: Any, loader: DataLoader | None, ranks: Ranks) -> Split | None:
    distributed = getattr(dataset, "_distributed", None)
    fingerprints = ranks.gather(getattr(dataset, "_fingerprint", None))
    if distributed is not None:
        if (distributed.world_size, distributed.rank) != (ranks.size, ranks.rank):
            raise InputError(
                f"batches: their dataset is that of node {distributed.rank} of {distributed.world_size}, and this is "
                f"process {ranks.rank} of {ranks.size}"
            )
        by_shards = distributed.strategy == "shards" or (
            distributed.strategy == "auto" and dataset.num_shards % ranks.size == 0
        )
        return Split() if by_shards or loader is None else Split(ranks.rank, ranks.size)
    if None in fingerprints or len(set(fingerprints)) == 1:
        return None
    lengths = ranks.gather(len(dataset))
    in_order = loader is not None and isinstance(getattr(loader.batch_sampler, "sampler", None), SequentialSampler)
    return Split(sum(lengths[: ranks.rank])) if all(ranks.gather(in_order)) else Split()
