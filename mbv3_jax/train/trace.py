"""A trace of some steps, for XProf or TensorBoard's profile page."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Trace:
    """Traces the steps that `config.profile` names, in every process of a run.

    The trace has what the device and this process's threads do, and how long each step waited for
    its batch. What the loader's own processes do is not in it.

    Args:
      steps: the first and the last step; None traces nothing.
      folder: where it is written, in files of its own for each time.
      note: called with a message when it has been written.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, note: Callable[[str], None]):
        self._steps, self._folder, self._note = steps, folder, note
        self._since: int | None = None

    def before(self, step: int) -> None:
        """Begins the trace if the step is one of them; a run may resume in the middle of them."""
        if self._steps and self._since is None and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._since = step

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """What marks a step in the trace."""
        if self._since is None:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def part(self, name: str) -> contextlib.AbstractContextManager:
        """What marks a part of a step in the trace."""
        if self._since is None:
            return contextlib.nullcontext()
        return jax.profiler.TraceAnnotation(name)

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after its last step, once the result has been computed."""
        if self._since is not None and self._steps and step >= self._steps[1]:
            jax.block_until_ready(result)
            since = self._since
            self.stop()
            self._note(f"trace of steps {since} to {step}: {self._folder}")

    def stop(self) -> None:
        """Ends a trace that is under way."""
        if self._since is not None:
            self._since = None
            jax.profiler.stop_trace()
