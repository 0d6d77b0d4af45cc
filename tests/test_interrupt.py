"""Ctrl-C while something must not be left half done."""

import os
import signal
import types

import pytest

from fastprobe.checkpoint import FILE, Checkpoint
from fastprobe.interrupt import uninterrupted


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_first_one_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        press()
        done.append("rest of the block")

    assert done


def test_a_second_one_goes_through():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        press()
        press()
        done.append("rest of the block")

    assert not done


def test_the_handler_of_before_is_back():
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        pass

    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_comes_during_the_last_save_does_not_lose_it(tmp_path):
    def save(path, config):
        press()
        path.write_text("moments")

    scan = types.SimpleNamespace(batches=3, sequences=9, moments=types.SimpleNamespace(save=save))
    with pytest.raises(KeyboardInterrupt), Checkpoint(tmp_path, {}).keeping(scan, {}):
        raise KeyboardInterrupt

    assert (tmp_path / FILE).read_text() == "moments"
