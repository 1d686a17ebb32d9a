"""Runs functions of tensors eagerly, compiled by Inductor, or as CUDA graphs.

Small networks spend most of an update in Python and in kernel launches. The same functions therefore run in one of
three modes: "eager"; "compile", through `torch.compile`; or "cudagraphs", which records the launches of the compiled
function once and replays them. There is one version of the code, so a mode changes rounding and nothing else.

To be compiled and recorded, a function must not read the numbers in its tensors (no `.item()`, no `if tensor`), must
keep its shapes, and on a GPU must make no tensor from Python numbers. It may mutate only the tensors that its caller
lists as `state`. Compiling takes seconds, so every function is compiled once for each signature of its arguments, on
the first call, and without the guards by which `torch.compile` usually notices that something else has changed. What
cannot be compiled runs as it is, after a note: an environment may do what no compiler follows, a disk may be full.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from rl import tree
from rl.compilers import compiler_missing, cxx, forget_headers, keep_headers_private
from rl.errors import one_line
from rl.reporting import note

Mode = Literal["eager", "compile", "cudagraphs"]
Function = TypeVar("Function", bound=Callable[..., Any])

# What compiling takes and saves on a core, from the seconds of whole runs (docs/log.md, "when compiling pays").
COMPILE_SECONDS, SAVED_PER_TIME_STEP, SAVED_PER_GRADIENT_STEP, SAVED_PER_ROW = 30.0, 0.3e-3, 1e-3, 1e-6


def compiling_pays(num_time_steps: int, num_gradient_steps: int, num_rows: int) -> bool:
    """Whether a run on the CPU gains more time than compiling takes.

    A rank steps its environments `num_time_steps` times; `num_rows` are those of all its gradient steps.
    """
    saved = SAVED_PER_TIME_STEP * num_time_steps
    saved += SAVED_PER_GRADIENT_STEP * num_gradient_steps + SAVED_PER_ROW * num_rows
    return saved > COMPILE_SECONDS


class Execution:
    """The mode in which functions run on a device, and the seconds spent on compiling and recording them."""

    def __init__(self, mode: Mode = "eager", device: torch.device | str = "cpu") -> None:
        self.mode = mode
        self.device = torch.device(device)
        self.compile_seconds = 0.0

    def step(self, function: Function, state: Sequence[Tensor] = (), *, compiles: bool = True) -> Function:
        """Compiles or records a function of one time step; `state` lists the tensors that it mutates.

        Functions that would take too long to compile are recorded only, or run as they are.
        """
        if self.mode == "eager" or (self.mode == "compile" and not compiles):
            return function
        compilable = compiles and compiler_missing(self.device) is None

        def make() -> Callable[..., Any]:
            fast = compiled(function, self.device) if compilable else function
            return _CudaGraph(fast, state) if self.mode == "cudagraphs" else fast

        return cast(Function, _Specialized(make, function, self))

    def loop(self, function: Function) -> Function:
        """Compiles or records a function that scans over time and whose every step is a `part`.

        On the CPU it is compiled as a whole. On GPUs it is recorded as a whole, but only its parts are compiled:
        unrolled over time it would take minutes to compile.
        """
        if self.mode == "cudagraphs":
            return cast(Function, _Specialized(lambda: _CudaGraph(function), function, self))
        if self.mode == "compile" and self.device.type == "cpu":
            return cast(Function, _Specialized(lambda: compiled(function, self.device), function, self))
        return function

    def part(self, function: Function) -> Function:
        """Compiles what a loop does at every step, unless the loop is compiled as a whole."""
        if self.mode == "eager" or self.device.type == "cpu" or compiler_missing(self.device):
            return function
        return cast(Function, _Specialized(lambda: compiled(function, self.device), function))


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function compiled by Inductor; every call must have arguments of the first call's signature."""
    keep_headers_private()

    def unique(*args: Any) -> Any:
        return function(*args)

    # torch.compile caches by code object, which all closures made here would share.
    unique.__code__ = unique.__code__.replace()
    options: dict[str, Any] = {
        # Calls the kernels, and loops over time, from C++; before torch 2.13 this fails for loops.
        "cpp_wrapper": torch.__version__ >= "2.13" and device.type == "cpu",
        # Computes tanh from one exponential instead of calling a library: twice as fast, and exact to 1e-7.
        "cpp.use_decompose_tanh": True,
        # A function is one or two C++ files: compiler processes would gain nothing, and outlive the run.
        "compile_threads": 1,
        # Checking guards takes longer than a small gradient step; `_Specialized` checks what can change.
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }
    if torch.__version__ >= "2.13":
        # Takes what is compiled from the cache also where it has loops, whose bodies are part of the cache's key.
        options["unsafe_marked_cacheable_functions"] = {"torch.ops.higher_order.scan": torch.__version__}
    if "CXX" in os.environ:
        options["cpp.cxx"] = (None, cxx())
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT" and platform.machine() == "x86_64":
        # Without AVX2 Inductor still writes vectors, for which it then includes no header.
        options["cpp.simdlen"] = 0
    return _Compiled(unique, torch.compile(unique, fullgraph=True, dynamic=False, options=options))


class _Compiled:
    """A function that its first call compiles; further calls go to what Dynamo has made of it.

    They go there directly: to let Dynamo find it takes 15 µs, nearly half of the call of a small policy.
    """

    def __init__(self, plain: Callable[..., Any], first: Callable[..., Any]) -> None:
        """`first` is the `plain` function as `torch.compile` returns it; nothing else may call it."""
        self.plain = plain
        self.first = first
        self.found: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.found is not None:
            return self.found(*args)
        from torch._dynamo.eval_frame import _debug_get_cache_entry_list  # the compiler takes 1.5 s to import

        # A gradient step calls autograd; records for torch's profiler take 1 µs a call.
        with torch._dynamo.config.patch(trace_autograd_ops=True, record_runtime_overhead=False):
            result = self.first(*args)
        for entry in _debug_get_cache_entry_list(self.plain.__code__):  # of which there is one
            self.found = FunctionType(entry.code, self.plain.__globals__, closure=self.plain.__closure__)
        return result


class _Specialized:
    """A function that `make` makes anew for each signature of its arguments; counts the seconds of first calls.

    Where what it makes cannot be compiled, it is the `plain` function.
    """

    def __init__(
        self, make: Callable[[], Callable[..., Any]], plain: Callable[..., Any], execution: Execution | None = None
    ) -> None:
        self.make = make
        self.plain = plain
        self.execution = execution
        self.fast: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        autocast = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
        signature = (torch.is_grad_enabled(), *autocast, *_signature(args))
        if signature in self.fast:
            return self.fast[signature](*args)
        began_at = time.perf_counter()
        try:
            result = self._first_call(signature, args)
            failure = None
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            failure = _reason(error)
        if failure is not None:  # no longer inside `except`, so that an error of the function stands for itself
            note(f"a part of this run is not compiled, which takes longer: {failure}")
            self.fast[signature] = self.plain
            result = self.plain(*args)
        if self.execution is not None:
            self.execution.compile_seconds += time.perf_counter() - began_at
        return result

    def _first_call(self, signature: Any, args: Any) -> Any:
        """Compiles and calls the function; once more if the C++ compiler fails.

        Ctrl-C and launchers send their signals to compilers too, and a run that goes on to its next checkpoint must not
        take other code than it would have. Or a crash has cut short what had been compiled in advance.
        """
        self.fast[signature] = self.make()  # imports the compiler
        try:
            return self.fast[signature](*args)
        except Exception as error:
            exit_code = _exit_code_of_cxx(error)
            if exit_code is None:
                raise
        if exit_code >= 0:
            forget_headers()
        self.fast[signature] = self.make()
        return self.fast[signature](*args)


def _exit_code_of_cxx(error: Exception) -> int | None:
    """The exit code of the C++ compiler if that is what has failed, below 0 for a signal; else None."""
    from torch._inductor.exc import CppCompileError

    cause = getattr(error, "inner_exception", error)
    return getattr(cause.__cause__, "returncode", 1) if isinstance(cause, CppCompileError) else None


def _is_of_compiler(error: Exception) -> bool:
    """Whether something could not be compiled, so that nothing of it has run."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError

    traced = hasattr(error, "real_stack")  # torch's note of where it was in the function that it traced
    return traced or isinstance(error, TorchDynamoException | CppCompileError)


def _reason(error: Exception) -> str:
    """Why something could not be compiled, in one line."""
    from torch._inductor.exc import CppCompileError

    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, CppCompileError):  # which quotes the command before what the compiler said
        return one_line(next((line for line in cause.output.splitlines() if "error" in line), cause.output))
    return one_line((str(cause).strip() or type(cause).__name__).splitlines()[0])


class _CudaGraph:
    """A function that mutates the tensors `state`, as a CUDA graph for one signature; returns copies."""

    def __init__(self, function: Callable[..., Any], state: Sequence[Tensor] = ()) -> None:
        self.function = function
        self.state = state
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *args: Any) -> Any:
        if self.graph is None:
            self.args = tree.map(torch.clone, args)
            self.inputs = list(tree.leaves(self.args))
            self.graph, self.outputs = self._capture(self.args)
        for static, tensor in zip(self.inputs, tree.leaves(args), strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return tree.map(torch.clone, self.outputs)

    def _capture(self, args: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
        saved = [tensor.detach().clone() for tensor in self.state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and lets libraries allocate what they must not while recorded
                self.function(*args)
        torch.cuda.current_stream().wait_stream(stream)
        # Autocast caches the weights that it has cast, and a replay would not cast them again.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.function(*args)
        torch.clear_autocast_cache()
        with torch.no_grad():
            for tensor, value in zip(self.state, saved, strict=True):
                tensor.copy_(value)
        return graph, outputs


def _signature(value: Any) -> Iterator[Any]:
    """What a specialized function may depend on in its nested arguments: everything but the numbers in tensors."""
    if isinstance(value, Tensor):
        yield value.shape
        yield value.stride()
        yield value.dtype
        yield value.device
        yield value.requires_grad
    elif isinstance(value, tuple | list | dict):
        yield type(value)
        for part in value.items() if isinstance(value, dict) else value:
            yield from _signature(part)
    else:
        yield value
