"""How functions of tensors are run: as they stand, compiled by Inductor, or captured in CUDA graphs.

Such a function looks at no number (no `.item()`, no `if tensor`), keeps its shapes, and makes no tensor from Python
numbers on a GPU. Whatever it changes in place, it names as its `state`.
"""

import functools
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

Mode = Literal["eager", "compiled", "captured"]
Function = TypeVar("Function", bound=Callable[..., Any])
Shapes = tuple[torch.Size, ...]

# On two cores a compiled gradient step saves about 0.7 ms and 1 µs a row, and compiling all functions takes some 30 s
# (docs/log.md).
SAVED_SECONDS_PER_STEP, SAVED_SECONDS_PER_ROW, COMPILE_SECONDS = 0.7e-3, 1e-6, 30.0


def compiler_missing(device: torch.device) -> str | None:
    """What Inductor lacks on this machine to compile for a device, if anything."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"a C++ compiler ({compiler})"


def compiling_pays(num_gradient_steps: int, num_rows: int) -> bool:
    """Whether a run on the CPU gains more than compiling takes, by its gradient steps and the rows in all of them."""
    return SAVED_SECONDS_PER_STEP * num_gradient_steps + SAVED_SECONDS_PER_ROW * num_rows > COMPILE_SECONDS


class Execution:
    """One way of running, and the seconds that it took to compile and capture."""

    def __init__(self, mode: Mode = "eager", device: torch.device | str = "cpu") -> None:
        """Without arguments: functions run as they stand."""
        self.mode = mode
        self.device = torch.device(device)
        self.compile_seconds = 0.0

    def step(self, function: Function, state: Sequence[Tensor] = ()) -> Function:
        """A function of one moment."""
        if self.mode == "eager":
            return function
        fast = function if compiler_missing(self.device) else compiled(function)
        return self._timed(captured(fast, state) if self.mode == "captured" else fast)

    def loop(self, function: Function) -> Function:
        """A function that scans over time, in which every step is a `part`.

        On the CPU it is compiled as a whole. On GPUs it is captured as a whole: unrolled over time it would take
        minutes to compile.
        """
        if self.device.type == "cpu" and self.mode == "compiled":
            return self._timed(compiled(function))
        return self._timed(captured(function)) if self.mode == "captured" else function

    def part(self, function: Function) -> Function:
        """What a loop does at every step."""
        whole = self.mode == "eager" or self.device.type == "cpu" or compiler_missing(self.device)
        return function if whole else compiled(function)

    def _timed(self, function: Function) -> Function:
        """The function, with the first call for any shapes counted as compilation."""
        known: set[Shapes] = set()

        @functools.wraps(function)
        def timed(*args: Any) -> Any:
            shapes = tuple(tensor.shape for tensor in _tensors(args))
            if shapes in known:
                return function(*args)
            known.add(shapes)
            began_at = time.perf_counter()
            result = function(*args)
            self.compile_seconds += time.perf_counter() - began_at
            return result

        return cast(Function, timed)


def compiled(function: Function) -> Function:
    """The function through Inductor, once for any shapes."""
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        # The loop over time and all calls of kernels in C++; torch 2.11 cannot do that to a loop.
        "cpp_wrapper": torch.__version__ >= "2.13" and not torch.cuda.is_available(),
        # A tanh of one exponential instead of a library's: twice as fast, and exact to 1e-7.
        "cpp.use_decompose_tanh": True,
    }
    return cast(Function, torch.compile(function, fullgraph=True, dynamic=False, options=options))


def captured(function: Function, state: Sequence[Tensor] = ()) -> Function:
    """The function as CUDA graphs; `state` are the tensors that it changes in place."""
    return cast(Function, _Captured(function, state))


class _Captured:
    """A function's launches as a CUDA graph, one for any shapes of its arguments; results are copies."""

    def __init__(self, function: Callable[..., Any], state: Sequence[Tensor]) -> None:
        self.function = function
        self.state = state
        self.graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        """Copies the arguments to where the graph expects them, and replays it."""
        given = list(_tensors(args))
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self.graphs:
            self.graphs[shapes] = self._capture(_map_tensors(torch.clone, args))
        graph, inputs, outputs = self.graphs[shapes]
        for static, tensor in zip(inputs, given, strict=True):
            static.copy_(tensor)
        graph.replay()
        return _map_tensors(torch.clone, outputs)

    def _capture(self, args: Any) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        saved = [tensor.detach().clone() for tensor in self.state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and has libraries allocate what they will not while captured
                self.function(*args)
        torch.cuda.current_stream().wait_stream(stream)
        # Weights that autocast has cast are reused from its cache, which a replay would not renew.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.function(*args)
        torch.clear_autocast_cache()
        with torch.no_grad():
            for tensor, value in zip(self.state, saved, strict=True):
                tensor.copy_(value)
        return graph, list(_tensors(args)), outputs


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested tuples, lists and dictionaries with the function applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _map_tensors(function, part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
