"""Looks for a compiler that works, and keeps compiled code in a folder that nobody else can write to."""

import atexit
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import zlib
from pathlib import Path

import torch

from rl.errors import UserError

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def compiler_missing(device: torch.device) -> str | None:
    """What Inductor lacks on this machine to compile for a device, or None; the compiler is tried on one line."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "torch's compiler (TORCH_COMPILE_DISABLE turns it off)"
    if device.type == "cuda":
        if not importlib.util.find_spec("triton"):
            return "the package triton"
        # Triton compiles the C code that launches its kernels.
        compiler, language = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "gcc", "C"
    else:
        compiler, language = cxx(), "C++"
    if not shutil.which(compiler):
        return f"a {language} compiler ({compiler or 'CXX is empty'})"
    return None if _works(compiler, language) else f"a {language} compiler that works ({compiler} does not)"


def cxx() -> str:
    """The compiler in CXX: the last word of "ccache g++", since Inductor takes one word and has a cache of its own."""
    words = [word for word in shlex.split(os.environ.get("CXX", "g++")) if not word.startswith("-")]
    return words[-1] if words else ""


@functools.cache
def _works(compiler: str, language: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return _compiles(compiler, language, b"int one(void) { return 1; }\n", Path(folder, "one.so"))


def _compiles(compiler: str, language: str, source: bytes, library: Path) -> bool:
    command = [compiler, "-x", language.lower(), "-O3", "-shared", "-fPIC", "-o", str(library), "-"]
    try:
        # In a session of its own: Ctrl-C, which a terminal sends to all, must not make it look as if it did not work.
        subprocess.run(command, input=source, capture_output=True, check=True, timeout=60, start_new_session=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return library.exists()


def built(source: Path) -> Path | None:
    """The library made of a C++ file, which is compiled if it is not in the cache; None without a working compiler."""
    code, compiler = source.read_bytes(), cxx()
    key = hashlib.sha256(b"\0".join((code, compiler.encode(), platform.machine().encode()))).hexdigest()
    library = _private_folder() / f"{source.stem}-{key[:16]}.so"
    if not library.exists():
        # Other ranks may be compiling it too, and load what is there.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            unfinished = Path(folder, library.name)
            if not _compiles(compiler, "C++", code, unfinished):
                return None
            unfinished.replace(library)
    return library


def keep_caches_private() -> None:
    """Moves the caches of Inductor and Triton from /tmp to ~/.cache/rl, since code is loaded from them unchecked.

    Raises:
        UserError: That folder belongs to another user, or others can access it.
    """
    folder = _private_folder()  # which what else is compiled needs too, wherever these two are
    for variable in CACHES.keys() - os.environ.keys():
        os.environ[variable] = str(folder / f"{CACHES[variable]}-{_cpu()}")


@functools.cache
def keep_headers_private() -> None:
    """Moves the headers that Inductor compiles in advance, which it keeps in /tmp wherever its cache is."""
    from torch._inductor import codecache

    codecache._HEADER_DIR = str(_private_folder() / f"headers-{_cpu()}")
    codecache._HEADER_LOCK_DIR = str(Path(codecache._HEADER_DIR, "locks"))


def forget_headers() -> None:
    """Deletes those headers, of which a crash may have left a part, which no later run would replace."""
    from torch._inductor import codecache

    shutil.rmtree(codecache._HEADER_DIR, ignore_errors=True)
    codecache._precompile_header.cache_clear()


def _cpu() -> str:
    """Identifies the CPU, which Inductor's cache keys do not, although machines may share a home folder.

    Code compiled for AVX-512 ends the process with a segmentation fault on a CPU without it.
    """
    return f"{torch.backends.cpu.get_cpu_capability().lower()}-{zlib.crc32(cpu_flags().encode()):08x}"


def cpu_flags() -> str:
    """The line of /proc/cpuinfo that names the CPU's instruction sets; where there is no such file, the CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    return next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])


def _private_folder() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rl")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):  # no home folder, or not a writable one
        folder = Path(tempfile.mkdtemp(prefix="rl-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise UserError(
            f"{folder}: compiled code is loaded from it, so it must be yours alone; remove it or chmod 700 it"
        )
    return folder
