"""The host code of the CUDA kernels over a runtime without a GPU: devices, streams, grids and shared memory."""

import ctypes

import pytest

from tests.native.cuda_on_host import host_code


@pytest.fixture
def module():
    return host_code() or pytest.skip("no nvcc")


@pytest.fixture
def runtime(module):
    """Return the functions of the runtime."""
    runtime = ctypes.CDLL(module.__file__)
    runtime.launches.restype = ctypes.c_char_p
    return runtime


def launch(module, device, *, exact=False, splits=1):
    """Launch the products of one pair of blocks of 200 columns; no pointer is read."""
    plan = {
        "pairs": [(0, 0, 200, 200, 4096, 40_000, 200, 1)],
        "splits": splits,
        "folds": 1,
        "fold_slabs": 4096,
        "workspace": 4096,
        "device": device,
        "stream": 77,
    }
    if exact:
        module.gram_exact(blocks=[(4096, 200, 1, 200, 1, 0)], index=4096, **plan)
    else:
        blocks = [(4096, 200, 4096, 200, 200)]
        module.gram(blocks=blocks, bfloat16=True, n=1000, positions=1024, is_gathered=4096, **plan)


def last(runtime, count=1):
    """Return the last launches: device, grid, threads of a block, shared memory, stream, kernel."""
    lines = runtime.launches().decode().splitlines()[-count:]
    return [(*map(int, line.split()[:5]), line.split()[5]) for line in lines]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("device", [1, 0])
def test_launches_go_to_the_device_and_the_stream_that_are_asked_for(module, runtime, device, exact):
    runtime.torch_sets_device(device)

    launch(module, device, exact=exact)

    ((where, *_, stream, _),) = last(runtime)
    assert (where, stream) == (device, 77)


def test_the_device_that_torch_made_current_stays_so(module, runtime):
    """This module's runtime has never heard of device 1 before, so it must not restore what it knew."""
    launch(module, 0)
    runtime.torch_sets_device(1)

    launch(module, 1)

    assert runtime.current_device() == 1


def test_a_device_that_does_not_exist_is_an_error(module):
    with pytest.raises(RuntimeError, match="CUDA: invalid device ordinal"):
        launch(module, 2)


@pytest.mark.parametrize("splits", [1, 100])
def test_grids_and_shared_memory(module, runtime, splits):
    launch(module, 0, splits=splits)

    first, *rest = last(runtime, 1 + (splits > 1))
    assert first[1:4] == (min(132, 3 * splits), 384, 7 * 32_768 + 1024)
    assert "gram_kernel" in first[5]
    assert [(grid, "add_parts" in name) for _, grid, *_, name in rest] == [(3, True)][: len(rest)]


def test_more_pairs_than_a_launch_holds_are_an_error(module):
    with pytest.raises(ValueError, match="too many pairs"):
        module.gram_exact(
            blocks=[], index=0, pairs=33 * [(0, 0, 8, 8, 0, 0, 0, 1)], splits=1, folds=1, fold_slabs=0, workspace=0,
            device=0, stream=0,
        )  # fmt: skip
