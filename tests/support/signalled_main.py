"""main.py that sends itself a signal: python signalled_main.py SIGNAL@MOMENT FLAGS...

Moments: meeting (a second after it has begun to wait for other processes), met (when they have met,
before anything is trained), step7 (before the seventh step of this process), evaluation (in its
first, before the second batch). "never" in place of both sends nothing.
"""

import os
import signal
import sys
import threading

import jax

from mbv3_jax.cli import train
from mbv3_jax.train import evaluate, loop


def at_call(module, number, name):
    """Sends the signal at the call of this number of `module.put_batch`."""
    original, calls = module.put_batch, []

    def put_batch(*args, **how):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **how)

    module.put_batch = put_batch


def while_they_meet(name):
    """Sends the signal while the main thread waits in JAX."""
    original = jax.distributed.initialize

    def initialize(**how):
        threading.Timer(1, os.kill, (os.getpid(), getattr(signal, name))).start()
        original(**how)

    jax.distributed.initialize = initialize


def once_they_have_met(name):
    """Sends the signal before anything else is done together."""
    original = train.start_processes

    def start_processes(*args, **how):
        original(*args, **how)
        os.kill(os.getpid(), getattr(signal, name))

    train.start_processes = start_processes


name, _, moment = sys.argv[1].partition("@")
if moment == "evaluation":
    at_call(evaluate, 2, name)
elif moment == "meeting":
    while_they_meet(name)
elif moment == "met":
    once_they_have_met(name)
elif moment:
    at_call(loop, int(moment.removeprefix("step")), name)
sys.exit(train.main(sys.argv[2:]))
