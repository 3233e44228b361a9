import os
import signal
import threading

import pytest

from mbv3_jax.run.interrupt import Interrupt


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_met_at_the_next_check():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        interrupt.check()
        for item in interrupt.checked(range(5)):
            if item == 2:
                ctrl_c()
            seen.append(item)
    assert seen == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), Interrupt():
        ctrl_c()
        ctrl_c()
        pytest.fail("went on")


def test_without_ctrl_c_nothing_happens():
    with Interrupt() as interrupt:
        assert list(interrupt.checked("abc")) == ["a", "b", "c"]


def test_other_threads_leave_the_handler_alone():
    before, entered = signal.getsignal(signal.SIGINT), []

    def enter():
        with Interrupt():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]
