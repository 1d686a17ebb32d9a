"""What it takes to compile: a compiler that works, and a folder for the results that nobody else can write to."""

import atexit
import functools
import importlib.util
import os
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
    """What Inductor lacks on this machine to compile for a device, if anything; compilers are tried on one line."""
    if device.type == "cuda":
        if not importlib.util.find_spec("triton"):
            return "the package triton"
        # Triton builds what launches its kernels.
        compiler, language = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "gcc", "C"
    else:
        compiler, language = os.environ.get("CXX", "g++"), "C++"
    words = shlex.split(compiler)
    if not words or not shutil.which(words[0]):
        return f"a {language} compiler ({compiler})"
    return None if _works(tuple(words), language) else f"a {language} compiler that works ({compiler} does not)"


@functools.cache
def _works(words: tuple[str, ...], language: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "one.so")
        command = [*words, "-x", language.lower(), "-shared", "-fPIC", "-o", str(library), "-"]
        try:
            subprocess.run(command, input=b"int one(void) { return 1; }\n", capture_output=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return False
        return library.exists()


@functools.cache
def one_word(compiler: str) -> str:
    """A C++ compiler of several words, such as "ccache g++", as the one program that Inductor wants."""
    if len(shlex.split(compiler)) == 1:
        return compiler
    # Always the same one, whose name is in the keys of what is cached.
    script = _private_folder() / f"c++{zlib.crc32(compiler.encode())}"
    unfinished = script.with_name(f"{script.name}.{os.getpid()}")
    unfinished.write_text(f'#!/bin/sh\nexec {compiler} "$@"\n')
    unfinished.chmod(0o700)
    unfinished.replace(script)
    return str(script)


def keep_caches_private() -> None:
    """Has compilers keep what they read again, which can be any code, below ~/.cache and not in a folder of /tmp.

    Raises:
        UserError: The folder is not this user's, or open to others.
    """
    for variable in CACHES.keys() - os.environ.keys():
        os.environ[variable] = str(_private_folder() / CACHES[variable])


def _private_folder() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rl")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):  # there is no home, or none to write to
        folder = Path(tempfile.mkdtemp(prefix="rl-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise UserError(f"{folder}: is another's or open to others, and compiled code is kept there; chmod 700 it")
    return folder
