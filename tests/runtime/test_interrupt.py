"""Ctrl-C during a step that must not be left half done."""

import os
import signal
import types

import pytest

from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.scan.checkpoint import FILE, Checkpoint


def press(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def interrupted_block(times):
    """Interrupt a block so often, and return what it did."""
    done = []
    try:
        with uninterrupted():
            press(times)
            done.append("rest of the block")
    except KeyboardInterrupt:
        done.append("interrupted")
    return done


def test_the_first_waits_for_the_end_of_the_block():
    assert interrupted_block(1) == ["rest of the block", "interrupted"]


def test_the_second_interrupts_at_once():
    assert interrupted_block(2) == ["interrupted"]


def test_a_block_inside_another_waits_for_the_end_of_both():
    done = []

    def inner():
        with uninterrupted():
            press()
            done.append("rest of the inner block")

    try:
        with uninterrupted():
            inner()
            done.append("rest of the outer block")
    except KeyboardInterrupt:
        done.append("interrupted")

    assert done == ["rest of the inner block", "rest of the outer block", "interrupted"]


def test_the_former_handler_is_restored():
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        pass

    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_during_the_last_save_does_not_lose_it(tmp_path):
    def save(path, config):
        press()
        path.write_text("moments")

    facts = {"batches": 3, "sequences": 9, "tokens_before": 0, "complete": True, "read": []}
    scan = types.SimpleNamespace(**facts, moments=types.SimpleNamespace(save=save))
    with pytest.raises(KeyboardInterrupt), Checkpoint(tmp_path, {}).keeping(scan, {}):
        raise KeyboardInterrupt

    assert (tmp_path / FILE).read_text() == "moments"
