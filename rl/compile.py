"""How functions of tensors are run: as they stand, compiled by Inductor, or captured in CUDA graphs.

Such a function looks at no number (no `.item()`, no `if tensor`), keeps its shapes, and makes no tensor from Python
numbers on a GPU. Whatever it changes in place, it names as its `state`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as compiled_scan

from rl.compilers import compiler_missing, cxx

Mode = Literal["eager", "compiled", "captured"]
Function = TypeVar("Function", bound=Callable[..., Any])
Carry = TypeVar("Carry", bound=tuple[Tensor, ...])  # a NamedTuple of tensors
Output = TypeVar("Output", bound=tuple[Tensor, ...])  # likewise

# On two cores a compiled gradient step saves about 0.7 ms and 1 µs a row, and compiling all functions takes some 30 s
# (docs/log.md).
SAVED_SECONDS_PER_STEP, SAVED_SECONDS_PER_ROW, COMPILE_SECONDS = 0.7e-3, 1e-6, 30.0


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
        """A function of one moment, which changes the tensors `state` in place."""
        if self.mode == "eager":
            return function
        compilable = compiler_missing(self.device) is None

        def make() -> Callable[..., Any]:
            fast = compiled(function, self.device) if compilable else function
            return _Captured(fast, state) if self.mode == "captured" else fast

        return cast(Function, _Specialised(make, self))

    def loop(self, function: Function) -> Function:
        """A function that scans over time, in which every step is a `part`.

        On the CPU it is compiled as a whole. On GPUs it is captured as a whole: unrolled over time it would take
        minutes to compile.
        """
        if self.mode == "captured":
            return cast(Function, _Specialised(lambda: _Captured(function), self))
        if self.mode == "compiled" and self.device.type == "cpu":
            return cast(Function, _Specialised(lambda: compiled(function, self.device), self))
        return function

    def part(self, function: Function) -> Function:
        """What a loop does at every step."""
        on_cpu = self.device.type == "cpu"  # where the loop is compiled, and this with it
        as_it_stands = self.mode == "eager" or on_cpu or compiler_missing(self.device)
        return function if as_it_stands else cast(Function, _Specialised(lambda: compiled(function, self.device)))


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function through Inductor, for one signature: nobody checks that later calls have that of the first."""

    def unique(*args: Any) -> Any:
        return function(*args)

    # What is compiled is kept by code object, and all these functions would have one.
    unique.__code__ = unique.__code__.replace()
    options: dict[str, Any] = {
        # The loop over time and all calls of kernels in C++; torch 2.11 cannot do that to a loop.
        "cpp_wrapper": torch.__version__ >= "2.13" and device.type == "cpu",
        # A tanh of one exponential instead of a library's: twice as fast, and exact to 1e-7.
        "cpp.use_decompose_tanh": True,
        # One C++ file or two a function: helpers in processes of their own would only outlive them.
        "compile_threads": 1,
        # To check all that could have changed since the last call takes longer than a small gradient step.
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }
    if "CXX" in os.environ:
        options["cpp.cxx"] = (None, cxx())
    return torch.compile(unique, fullgraph=True, dynamic=False, options=options)


class _Specialised:
    """A function made fast once for every signature of its arguments; the seconds of first calls are counted."""

    def __init__(self, make: Callable[[], Callable[..., Any]], execution: Execution | None = None) -> None:
        """`make` gives a function for one signature, which may take its first call to get ready."""
        self.make = make
        self.execution = execution
        self.fast: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Calls the function for this signature."""
        autocast = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
        signature = (torch.is_grad_enabled(), *autocast, *_signature(args))
        if signature in self.fast:
            return self.fast[signature](*args)
        self.fast[signature] = self.make()
        began_at = time.perf_counter()
        with torch._dynamo.config.patch(trace_autograd_ops=True):  # a gradient step asks for gradients inside
            result = self.fast[signature](*args)
        if self.execution is not None:
            self.execution.compile_seconds += time.perf_counter() - began_at
        return result


class _Captured:
    """A function's launches as a CUDA graph, for one signature; results are copies."""

    def __init__(self, function: Callable[..., Any], state: Sequence[Tensor] = ()) -> None:
        """`state` are the tensors that the function changes in place."""
        self.function = function
        self.state = state
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *args: Any) -> Any:
        """Copies the arguments to where the graph expects them, and replays it."""
        if self.graph is None:
            self.args = _map_tensors(torch.clone, args)
            self.inputs = list(_tensors(self.args))
            self.graph, self.outputs = self._capture(self.args)
        for static, tensor in zip(self.inputs, _tensors(args), strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return _map_tensors(torch.clone, self.outputs)

    def _capture(self, args: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
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
        return graph, outputs


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _signature(value: Any) -> Iterator[Any]:
    """What a specialised function may depend on in its nested arguments: everything but the numbers in tensors."""
    if isinstance(value, Tensor):
        yield value.shape
        yield value.stride()
        yield value.dtype
        yield value.device
        yield value.requires_grad
    elif isinstance(value, tuple):
        for part in value:
            yield from _signature(part)
    else:
        yield value


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


def scan(
    step: Callable[..., tuple[Carry, Output]],
    carry: Carry,
    inputs: tuple[Tensor, ...],
    output_type: type[Output],
    *,
    reverse: bool = False,
) -> tuple[Carry, Output]:
    """Steps through inputs [T, ...] by `step(carry, *now)`: the last carry, and all outputs stacked [T, ...].

    With `reverse` it goes from the last to the first; outputs keep their places. No two fields of a carry may be the
    same tensor: Inductor's loop in C++ would free it twice.
    """
    if torch.compiler.is_compiling():

        def plain_step(plain: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> tuple[Any, Any]:
            after, output = step(type(carry)(*plain), *now)
            # The compiled loop knows plain tuples only, and no tensor may be carry and output at once.
            return tuple(after), tuple(field.clone() for field in output)

        after, outputs = compiled_scan(plain_step, tuple(carry), inputs, reverse=reverse)
        return type(carry)(*after), output_type(*outputs)

    order = range(len(inputs[0]))
    steps = []
    for t in reversed(order) if reverse else order:
        carry, output = step(carry, *(field[t] for field in inputs))
        steps.append(output)
    return carry, output_type(*map(torch.stack, zip(*(steps[::-1] if reverse else steps), strict=True)))
