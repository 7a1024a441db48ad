"""llama.cpp's RPC backend: devices of other machines, and a server that lends ours.

It has no authentication and no encryption, and a client can make a server write to its memory:
for networks in which every machine is trusted.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ggprune.errors import InputError, LlamaError
from ggprune.llama.library import library

DEFAULT_ENDPOINT = "127.0.0.1:50052"

_CONNECT_SECONDS = 10.0
_added: set[str] = set()


def is_built_in() -> bool:
    """Whether the installed llama-cpp-python has the RPC backend."""
    return bool(library().ggml["ggml_backend_reg_by_name"](b"RPC"))


def add_servers(endpoints: Sequence[str]) -> None:
    """Make the devices of servers known to llama.cpp; adding one twice does nothing.

    Args:
        endpoints: ``host:port`` of each.

    Raises:
        InputError: not host:port.
        LlamaError: this build has no RPC, or nobody answers there.
    """
    ggml = library().ggml
    for endpoint in endpoints:
        if endpoint in _added:
            continue
        add = _function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
        # llama.cpp aborts the process when nobody answers, so try first.
        _check_answers(endpoint)
        registry = add(endpoint.encode())
        if not registry:
            raise LlamaError(
                f"{endpoint}: is not an RPC server of this version of llama.cpp",
                remedy="Start it there with the same installation: ggprune rpc-server",
            )
        ggml["ggml_backend_register"](registry)
        _added.add(endpoint)


def serve(endpoint: str, devices: Sequence[int], *, threads: int, cache: str | None) -> None:
    """Lend devices to clients, one client at a time, until the process is ended.

    Args:
        endpoint: ``host:port`` to listen at.
        devices: their handles, see devices.Device.
        threads: for devices that are CPUs.
        cache: folder for tensors of clients, so that they are sent only once; None keeps none.

    Raises:
        LlamaError: this build has no RPC, or listening failed.
    """
    types = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    start = _function("ggml_backend_rpc_start_server", None, *types)
    array = (ctypes.c_void_p * len(devices))(*devices)
    # C code that never returns: Python's handlers would never run, so Ctrl-C ends the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    folder = os.fsencode(cache) if cache else None
    start(endpoint.encode(), folder, threads, len(devices), ctypes.addressof(array))
    raise LlamaError(
        f"{endpoint}: cannot listen there", remedy="Choose another port, or end what uses it."
    )


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Split ``host:port``.

    Raises:
        InputError: it is something else.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"{endpoint!r} is not HOST:PORT", remedy=f"For instance {DEFAULT_ENDPOINT}"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    ggml = library().ggml
    registry = ggml["ggml_backend_reg_by_name"](b"RPC")
    if not registry:
        raise LlamaError(
            "the installed llama-cpp-python was built without RPC",
            remedy=(
                "CMAKE_ARGS=-DGGML_RPC=ON pip install --force-reinstall --no-cache-dir "
                f"--no-binary llama-cpp-python llama-cpp-python=={library().version}"
            ),
        )
    address = ggml["ggml_backend_reg_get_proc_address"](registry, name.encode())
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def _check_answers(endpoint: str) -> None:
    try:
        with socket.create_connection(parse_endpoint(endpoint), timeout=_CONNECT_SECONDS):
            pass
    except OSError as error:
        raise LlamaError(
            f"{endpoint}: no RPC server answers: {error.strerror or error}",
            remedy="Start one there: ggprune rpc-server --listen HOST:PORT",
        ) from error
