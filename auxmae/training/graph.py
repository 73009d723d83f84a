"""The whole optimiser step as one CUDA graph, so that a GPU need not wait for the host to launch hundreds of kernels.

A graph replays the same kernels on the same memory.  So the inputs are copied into buffers of its own, masks and dropout draw
from generators that the graph advances, the learning rate is a tensor, and whatever steers Python must be the same in every
step: `obstacle` says where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor

from auxmae.errors import AuxMAEError, SettingsError, first_line
from auxmae.settings.schema import SettingsTree
from auxmae.training.checkpoint import random_state, set_random_state
from auxmae.training.feed import Inputs
from auxmae.training.step import TrainingStep

# Steps before the capture, in which libraries set themselves up, kernels are built, and the optimiser makes its state.
WARMUP_STEPS = 3
# A graph's loss and gradient norm may be off by these parts of the step's own: sums in another order, no more.
TOLERANCE = (1e-3, 1e-2)

T = TypeVar("T")
# Takes work and the generators that it draws from; gives a function that does the work again.
Capture = Callable[[Callable[[], object], Sequence[torch.Generator]], Callable[[], None]]


class NotCapturedError(AuxMAEError):
    """The step cannot be replayed as a graph."""


def obstacle(settings: SettingsTree, device: torch.device, processes: int = 1) -> str | None:
    """Why a step of these settings cannot be replayed as a graph, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}, and CUDA graphs need a CUDA GPU"
    if processes > 1:
        return "several processes add up their gradients within a step"
    if settings.data.channel_sampling > 0:
        return "data.channel_sampling gives every batch another number of channels"
    if settings.masking.strategy == "mixed":
        return "masking.strategy = 'mixed' chooses another way to mask for every batch"
    if settings.train.recompute and settings.model.dropout > 0:
        return "train.recompute has to read the state of dropout's generator, for model.dropout is above 0"
    return None


def graphs_wanted(settings: SettingsTree, device: torch.device, processes: int = 1) -> bool:
    """Whether the step is to be captured.

    Raises:
        SettingsError: train.cuda_graphs = "on" where that cannot be.
    """
    asked = settings.train.cuda_graphs
    why = None if asked == "off" else obstacle(settings, device, processes)
    if asked == "on" and why is not None:
        raise SettingsError(f"train.cuda_graphs = 'on': {why}", hint="set train.cuda_graphs = 'auto'")
    return asked != "off" and why is None


def capture_cuda_graph(
    work: Callable[[], object], generators: Sequence[torch.Generator], stream: torch.cuda.Stream | None = None
) -> Callable[[], None]:
    """Records the work without doing it, on a stream of its own unless one is given; gives a function that does it.

    The default generator needs no registration.

    Raises:
        RuntimeError: the work cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    # A capture that fails leaves its own stream current; this context puts the caller's back.  Loader threads may pin memory
    # meanwhile, which only a capture of this thread alone tolerates.
    try:
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            work()
    except BaseException:
        # What failed first is what is to be told.
        with suppress(RuntimeError):
            _release_generators(generators)
        raise
    replay: Callable[[], None] = graph.replay
    return replay


def _release_generators(generators: Sequence[torch.Generator]) -> None:
    """After a capture that failed its generators wait for its end, and drawing from them is an error; one that works ends it."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        torch.zeros(1, device="cuda")


def beside(work: Callable[[], T], device: torch.device) -> T:
    """Does work on a stream of its own, as captured work runs."""
    if device.type != "cuda":
        return work()
    side, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(computing)
    with torch.cuda.stream(side):
        found = work()
    computing.wait_stream(side)
    return found


class GraphedStep:
    """Does what a `TrainingStep` does: eagerly at first and for batches of another size, else by replaying a graph.

    The first replay is compared with the step computed eagerly from the same state: a graph that gives something else, or a step
    that cannot be captured, is an error where `required`; else a notice, and the steps stay eager.

    Args:
        step: what to capture.
        required: whether eager steps will not do.
        notify: is told when the graph is given up.
        capture: makes the graph.
    """

    def __init__(
        self,
        step: TrainingStep,
        *,
        required: bool = False,
        notify: Callable[[str], None] = lambda text: None,
        capture: Capture | None = None,
    ) -> None:
        self.step, self.required, self.notify = step, required, notify
        self.capture = capture or capture_cuda_graph
        self.replays = 0
        self._eager_steps = 0
        self._given_up = False
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Inputs] = []
        self._loss, self._norm = (torch.zeros((), device=step.device) for _ in range(2))

    def __call__(self, batches: Sequence[Inputs], learning_rate: float) -> tuple[Tensor, Tensor]:
        """See `TrainingStep.__call__`; the tensors hold their values until the next step."""
        if self._given_up or not self._fits(batches):
            return self.step(batches, learning_rate)
        self.step.set_learning_rate(learning_rate)
        if self._eager_steps < WARMUP_STEPS:
            self._eager_steps += 1
            return beside(lambda: self.step.compute(batches), self.step.device)
        if self._replay is None:
            self._inputs = [Inputs(image.clone(), valid.clone(), None) for image, valid, _ in batches]
            return self._first()
        for own, given in zip(self._inputs, batches, strict=True):
            own.image.copy_(given.image)
            own.valid.copy_(given.valid)
        self._replay()
        self.replays += 1
        return self._loss, self._norm

    def release(self) -> None:
        """Gives the graph's memory back; steps from here on are eager."""
        self._given_up, self._replay, self._inputs = True, None, []

    def _fits(self, batches: Sequence[Inputs]) -> bool:
        """Whether the batches have the buffers' sizes; any will do for as long as there are none."""
        whole = all(each.channels is None for each in batches)
        return whole and (
            not self._inputs
            or [(each.image.shape, each.valid.shape) for each in batches]
            == [(each.image.shape, each.valid.shape) for each in self._inputs]
        )

    def _first(self) -> tuple[Tensor, Tensor]:
        """Does the step twice from the same state: eagerly, to know what is right, and by a new graph, which counts.

        In this order, since the capture returns the eager step's memory to the GPU before it takes its own.
        """
        tensors = self.step.tensors()
        saved: list[Tensor] = []
        masks, others = self.step.masks.get_state(), random_state(self.step.device)

        def restore() -> None:
            self.step.zero_grad()
            with torch.no_grad():
                # Where memory did not suffice for all copies, no step was taken.
                for tensor, before in zip(tensors, saved, strict=False):
                    # In place: the graph knows nothing but addresses.
                    tensor.copy_(before)
            self.step.masks.set_state(masks)
            set_random_state(others, self.step.device)

        def work() -> None:
            loss, norm = self.step.compute(self._inputs)
            self._loss.copy_(loss)
            self._norm.copy_(norm)

        def without(why: str) -> tuple[Tensor, Tensor]:
            given = self._inputs
            self.release()
            if self.required:
                raise NotCapturedError(why, hint="set train.cuda_graphs = 'auto' or 'off'")
            self.notify(f"note: {why}; training goes on without")
            restore()
            saved.clear()
            return self.step.compute(given)

        short = ""
        try:
            saved.extend(tensor.detach().clone() for tensor in tensors)
            expected = torch.stack(beside(lambda: self.step.compute(self._inputs), self.step.device)).tolist()
        except torch.OutOfMemoryError as error:
            short = f"memory does not suffice to compare the step with its CUDA graph: {first_line(error)}"
        if short:
            # Behind the exception, whose traceback keeps what the failed step had made.
            return without(short)
        drawn = self.step.masks.get_state()
        restore()
        try:
            self._replay = self.capture(work, [self.step.masks])
            self._replay()
            found = torch.stack([self._loss, self._norm]).tolist()
        except RuntimeError as error:
            why = f"the step cannot be captured as a CUDA graph: {first_line(error)}"
        else:
            if alike(found, expected) and torch.equal(self.step.masks.get_state(), drawn):
                self.replays += 1
                return self._loss, self._norm
            why = (
                f"the CUDA graph is not the step: loss and gradient norm {found[0]:.6g} and {found[1]:.6g} instead of "
                f"{expected[0]:.6g} and {expected[1]:.6g}, or other masks"
            )
        return without(why)


def alike(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether two steps' loss and gradient norm are the same; NaN is like NaN, which the loop's own watch reports."""
    return all(
        one == other or (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=tolerance)
        for one, other, tolerance in zip(found, expected, TOLERANCE, strict=True)
    )
