"""The one place that imports llama_cpp: its bindings, and the ggml symbols they leave out.

ggml's symbols are resolved through the library that llama_cpp has loaded. Loading
``libggml-base`` by path would bring in a second copy with other global state.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggprune.errors import LlamaError
from ggprune.interrupts import interrupts
from ggprune.llama import runtime
from ggprune.llama.runtime import EXTERNAL
from ggprune.llama.symbols import OPTIONAL, SYMBOLS

#: Values of ``enum ggml_log_level``.
_WARN, _ERROR = 3, 4

_AGAIN = (
    "The file is damaged, or made for another version of llama.cpp: compare its checksum, "
    "download or convert it again."
)
#: What helps where llama.cpp's reason matches.
_REMEDIES = (
    (
        "(unknown|unsupported) model architecture|unknown pre-tokenizer",
        f"This llama-cpp-python does not know it: install {runtime.NEWEST}, the newest that was "
        "tested, or see whether a newer ggprune does.",
    ),
    (
        "alloc|out of memory|could not reserve",
        "Not enough memory: try a smaller ctx or ubatch, fewer gpu_layers, or cpu_moe=True.",
    ),
    ("[sS]plit file|GGUF split|number of splits", "Name the first shard; all lie beside it."),
    ("memory slot", "The context is full: use a larger ctx."),
    ("requires? flash_attn", "Pass flash_attn=on."),
    ("cache types?", "Choose other types of the cache: cache_type_k=f16 and cache_type_v=f16."),
    ("main_gpu", "Choose another GPU: `ggprune doctor` lists them."),
    ("(missing|number of|invalid) tensor|tensors? .*(shape|data|found|bounds)|dupli", _AGAIN),
    ("key .*(not found|wrong)|wrong array|corrupt|read|magic|GGUF", _AGAIN),
)

#: Rounds of waiting before a thread sleeps: about a tenth of a millisecond.
_SPINS = 5000
#: Where Linux tells how many threads run, and how often to look.
_RUNNING = Path("/proc/loadavg")
_LOOKS, _LOOK_SECONDS = 8, 0.01


class Library:
    """The loaded llama.cpp.

    Attributes:
        api: the ``llama_cpp.llama_cpp`` module: functions and structures of ``llama.h``.
        ggml: functions that the module does not have, by name, see symbols.
    """

    def __init__(self) -> None:
        _share_cores()
        external = os.environ.get(EXTERNAL)
        try:
            import llama_cpp
            import llama_cpp.llama_cpp as api
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            where = f"{EXTERNAL}={external}: " if external else ""
            raise LlamaError(
                f"{where}llama-cpp-python cannot be loaded: {error or type(error).__name__}",
                remedy=runtime.OTHER_LIBRARY
                if external
                else "pip install --force-reinstall llama-cpp-python",
            ) from error
        self.api: Any = api
        self.version = str(llama_cpp.__version__)
        self.path = str(api._lib._name)
        self.ggml = _resolve(api._lib)
        self._log = LogCatcher(api)
        self._abort = AbortCatcher()
        self.ggml["ggml_set_abort_callback"](self._abort.pointer)
        runtime.check(api, self.ggml, self.version, is_external=bool(external))
        if not self.ggml["ggml_backend_reg_count"]():
            # Backends are libraries of their own, in packages and archives; llama.cpp would only
            # look beside Python, and where its distribution says, as it does below.
            self.ggml["ggml_backend_load_all_from_path"](os.fsencode(Path(self.path).parent))
        api.llama_backend_init()
        if not self.ggml["ggml_backend_reg_count"]():
            raise LlamaError(
                f"{self.path}: there are no backends beside it, not even for the CPU",
                remedy="Name the folder with libggml-cpu too, or where it is: GGML_BACKEND_PATH.",
            )

    def begin(self) -> None:
        """Forget complaints of earlier calls: what is logged from now on is of the next one."""
        self._log.begin()

    def failure(
        self, what: str, otherwise: str = "Pass verbose=True to see all that llama.cpp says."
    ) -> LlamaError:
        """Return the error to raise after a call failed: llama.cpp's own reason, and what helps.

        Args:
            what: file and call, such as "model.gguf: llama.cpp cannot load this model".
            otherwise: the remedy where the reason is none of the usual ones.
        """
        reason = self._log.reason
        helps = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason))
        return LlamaError(
            f"{what}: {reason or 'it gives no reason'}",
            remedy=next(helps, otherwise),
        )

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Give the lines llama.cpp logs meanwhile."""
        lines: list[str] = []
        self._log.install()
        self._log.listeners.append(lines)
        try:
            yield lines
        finally:
            self._log.listeners.remove(lines)

    def verbose(self, on: bool) -> None:
        """Let llama.cpp's own log through to stderr, or not."""
        self._log.install()
        self._log.passing = on

    @contextmanager
    def on_abort(self, rescue: Callable[[], str]) -> Iterator[None]:
        """Call ``rescue`` if llama.cpp aborts the process in the block; it returns a remedy."""
        before, self._abort.rescue = self._abort.rescue, rescue
        try:
            yield
        finally:
            self._abort.rescue = before


class LogCatcher:
    """Keeps llama.cpp's log off the terminal, and its complaints at hand."""

    def __init__(self, api: Any) -> None:
        self.passing = False
        self._errors: list[str] = []
        self._warning = ""
        self.listeners: list[list[str]] = []
        self._api = api
        self._callback = api.llama_log_callback(self._receive)
        self.install()

    @property
    def reason(self) -> str:
        """The first error that says more than that it failed, or the last warning."""
        telling = [line for line in self._errors if not line.startswith("failed to load model")]
        return next(iter(telling or self._errors), self._warning)

    def begin(self) -> None:
        """Forget what was said before."""
        self._errors, self._warning = [], ""
        self.install()

    def install(self) -> None:
        """Receive the log, also after another user of llama_cpp in this process has taken it."""
        self._api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        # llama.cpp names the function first.
        said = re.sub(r"^[\w:~<>]+: (error loading model: )?", "", line.strip())
        if level == _ERROR and said:
            self._errors.append(said)
        elif level == _WARN and said:
            self._warning = said
        for lines in self.listeners:
            lines.append(line)
        if self.passing:
            sys.stderr.write(line)


class AbortCatcher:
    """Ends the process as an error does when llama.cpp would abort it.

    A failed assertion, or an RPC server that went away, leaves no other way: the C++ code that
    called cannot be returned to.
    """

    def __init__(self) -> None:
        self.rescue: Callable[[], str] = str
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._receive)
        self.pointer = ctypes.cast(self._callback, ctypes.c_void_p)

    def _receive(self, message: bytes) -> None:
        try:
            text = message.decode("utf-8", "replace").strip()
            sys.stderr.write(f"Error: llama.cpp stopped: {text}\n")
            if remedy := self.rescue():
                sys.stderr.write(f"  -> {remedy}\n")
            sys.stderr.flush()
        finally:
            os._exit(LlamaError.exit_code)


@functools.cache
def library() -> Library:
    """Load llama.cpp, once.

    Raises:
        LlamaError: it is not installed, or its tensors are laid out in another way.
    """
    with interrupts:
        return Library()


def has_backend(*names: str) -> bool:
    """Whether llama.cpp was built with one of these, by its files: it is not loaded for that."""
    package = importlib.util.find_spec("llama_cpp")
    own = Path(package.origin).parent / "lib" if package and package.origin else Path()
    folder = Path(os.environ.get(EXTERNAL) or own)
    return any(any(folder.glob(f"*ggml-{name}*")) for name in names)


def _share_cores() -> None:
    """Let waiting threads spin for a moment, or sleep at once where other programs run.

    OpenMP's threads wait at each of the thousand barriers of a graph. On free cores spinning is
    fastest, and waking up takes most of the time otherwise; on busy ones they spin while the
    thread they wait for is not running. See docs/scaling.md for what was measured. To be decided
    before the library is loaded; the user's own choice stands.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    if others_running() >= (os.cpu_count() or 1) / 2:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    else:
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)


def others_running() -> float:
    """Programs that run at this moment beside this one, on Linux; 0 elsewhere.

    Not the load average: a minute after one run of ggprune it would still count that one.
    """
    counts = []
    for _ in range(_LOOKS):
        try:
            running = _RUNNING.read_text("ascii").split()[3].partition("/")[0]
            counts.append(int(running) - 1)
        except (OSError, ValueError, IndexError):
            return 0.0
        time.sleep(_LOOK_SECONDS)
    return sum(counts) / len(counts)


def _resolve(handle: Any) -> dict[str, Callable[..., Any]]:
    found, handles = {}, [handle]
    if platform.system() == "Windows":
        # There a library gives only its own functions, elsewhere those of what it needs too.
        folder = Path(handle._name).parent
        beside = [*folder.glob("*ggml.dll"), *folder.glob("*ggml-base.dll")]
        handles += [ctypes.CDLL(str(path)) for path in beside]
    for name, (arguments, result) in {**SYMBOLS, **OPTIONAL}.items():
        function = next(filter(None, (getattr(each, name, None) for each in handles)), None)
        if function is not None:
            function.argtypes, function.restype = arguments, result
            found[name] = function
        elif name in SYMBOLS:
            raise LlamaError(
                f"llama-cpp-python's library has no {name}",
                remedy=f"pip install 'llama-cpp-python=={runtime.NEWEST}', or a newer ggprune.",
            )
    return found


def kv_overrides(api: Any, values: Mapping[str, str | int]) -> Any:
    """Give metadata values for llama.cpp to read or write instead of a file's own.

    Args:
        values: by key; llama.cpp has 128 bytes for a text, its final zero included.

    Returns:
        An array that ends with an empty entry, and must live as long as what points to it; None
        for no values.
    """
    if not values:
        return None
    entries = (api.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(entries, values.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag = api.LLAMA_KV_OVERRIDE_TYPE_STR
            # A character cut in two is left out.
            entry.value.val_str = value.encode()[:127].decode("utf-8", "ignore").encode()
        else:
            entry.tag = api.LLAMA_KV_OVERRIDE_TYPE_INT
            entry.value.val_i64 = value
    return entries
