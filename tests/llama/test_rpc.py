"""llama.cpp's RPC backend on loopback: two servers, equal numbers, and one that is killed.

Needs a llama-cpp-python that was built with CMAKE_ARGS=-DGGML_RPC=ON. Without other devices at
hand these are also the tests of everything that happens on a device: offloading, buffers by name,
norms reduced where the data is.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ggprune.calibration.checkpoint import Checkpoint
from ggprune.calibration.statistics import FIELDS, Statistics
from ggprune.errors import InputError, LlamaError
from ggprune.llama import rpc
from tests.support.command import COMMAND
from tests.support.halting import halting
from tests.support.tiny import write_tiny

# As text: to look is to load llama.cpp.
built_in = pytest.mark.skipif("not rpc.is_built_in()", reason="llama-cpp-python without RPC")
EXACT = ["--no-repack", "--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]


@pytest.mark.parametrize("endpoint", ["", "host", "host:", ":50052", "host:port", "host:70000"])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(InputError, match="is not HOST:PORT"):
        rpc.parse_endpoint(endpoint)


def test_loopback() -> None:
    assert rpc.parse_endpoint("127.0.0.1:50052") == ("127.0.0.1", 50052)
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        assert rpc.is_loopback(host)
    for host in ("0.0.0.0", "10.0.0.2", "example", "::"):
        assert not rpc.is_loopback(host)


@pytest.mark.llama
@pytest.mark.skipif("rpc.is_built_in()", reason="llama-cpp-python with RPC")
def test_without_rpc_the_build_is_named() -> None:
    with pytest.raises(LlamaError, match="built without RPC") as caught:
        rpc.add_servers(["127.0.0.1:50052"])
    assert "-DGGML_RPC=ON" in caught.value.remedy


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    words = np.random.default_rng(0).choice(["the", "sea", "rests", "inner", "on"], 800)
    (folder / "text.txt").write_text(" ".join(words))
    return write_tiny(folder / "m.gguf", "glm4moe", layers=5)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [*COMMAND, "rpc-server", "--listen", endpoint, "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        _wait(endpoint, process)
        yield endpoint, process
    finally:
        process.kill()
        process.wait()


def _wait(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the server ended"
        try:
            socket.create_connection(rpc.parse_endpoint(endpoint), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not listen")


def calibrate(
    path: Path, output: Path, *options: str, code: str = COMMAND[2]
) -> subprocess.CompletedProcess[str]:
    text = path.with_name("text.txt")
    return subprocess.run(
        [
            *(sys.executable, "-c", code, "calibrate", str(path), "-o", str(output)),
            *("--text", f"a={text}", "--ctx", "128", "--threads", "1", "--ubatch", "64"),
            *(*EXACT, *options),
        ],
        text=True,
        capture_output=True,
    )


def assert_same(found: Path, wanted: Path) -> None:
    ours, theirs = Statistics.load(found).total, Statistics.load(wanted).total
    for name in FIELDS:
        mine, others = getattr(ours, name), getattr(theirs, name)
        if mine.dtype.kind == "i":
            assert np.array_equal(mine, others), name
        else:
            np.testing.assert_allclose(mine, others, rtol=1e-4, err_msg=name)


@pytest.mark.llama
@built_in
def test_two_servers_give_the_same_numbers(path: Path, tmp_path: Path) -> None:
    assert calibrate(path, tmp_path / "local").returncode == 0
    with server() as (one, _), server() as (two, _):
        # -v shows where llama.cpp puts the layers.
        options = ("--rpc", f"{one},{two}", "--tensor-split", "1,1", "-v")
        result = calibrate(path, tmp_path / "rpc", *options)
        assert result.returncode == 0, result.stderr
        for number, endpoint in enumerate((one, two)):
            size = re.search(
                rf"RPC\d\[{endpoint}\] model buffer size = +([\d.]+) MiB", result.stderr
            )
            assert size and float(size[1]) > 0, f"server {number} holds no layers"
        assert_same(tmp_path / "rpc", tmp_path / "local")


@pytest.mark.llama
@built_in
def test_experts_on_the_cpu_and_the_rest_on_a_server(path: Path, tmp_path: Path) -> None:
    assert calibrate(path, tmp_path / "local").returncode == 0
    with server() as (endpoint, _):
        for name, options in {
            "all": ("--cpu-moe",),
            "some": ("--n-cpu-moe", "2"),
            "fit": (),
            "pattern": ("--override-tensor", r"blk\.2\.ffn_down_exps=CPU"),
        }.items():
            result = calibrate(path, tmp_path / name, "--rpc", endpoint, *options)
            assert result.returncode == 0, result.stderr
            assert_same(tmp_path / name, tmp_path / "local")


_COUNTING = """
import ggprune.llama.norms as norms, ggprune.llama.tensor as tensor, sys
reduced, copied = [], []
call = norms._DeviceNorms.__call__
norms._DeviceNorms.__call__ = lambda self, t: reduced.append(t.name) or call(self, t)
array = tensor.TensorView.array
def read(self):
    if not self.on_host:
        copied.append(self.name)
    return array(self)
tensor.TensorView.array = read
from ggprune.cli.main import main
try:
    main()
finally:
    print(len(reduced), sum("weighted" in name for name in copied))
"""


@pytest.mark.llama
@built_in
def test_norms_are_reduced_on_the_server(path: Path, tmp_path: Path) -> None:
    with server() as (endpoint, _):
        result = calibrate(path, tmp_path / "rpc", "--rpc", endpoint, code=_COUNTING)
        assert result.returncode == 0, result.stderr
    reduced, copied = map(int, result.stdout.split())
    assert reduced > 0 and copied == 0


@pytest.mark.llama
@built_in
def test_a_killed_server_gives_an_error_and_a_usable_checkpoint(path: Path, tmp_path: Path) -> None:
    output, text = tmp_path / "s.gguf", path.with_name("text.txt")
    same = [
        *("calibrate", str(path), "-o", str(output), "--text", f"a={text}", *EXACT),
        *("--ctx", "32", "--threads", "1", "--ubatch", "8"),
    ]
    with server() as (endpoint, process):
        client = subprocess.Popen(
            [*halting("ffn_moe_topk-1", 20, "slowly"), *same, "--rpc", endpoint],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        client.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        _, errors = client.communicate(timeout=60)
    assert client.returncode == LlamaError.exit_code, errors
    assert "continues from there" in errors and "Traceback" not in errors
    partial = output.with_name("s.gguf.partial")
    assert Checkpoint.load(partial).tokens_done > 0
    # It goes on without the server too.
    subprocess.run([*COMMAND, *same], check=True, capture_output=True)
    whole = tmp_path / "whole.gguf"
    subprocess.run([*COMMAND, *same[:3], str(whole), *same[4:]], check=True, capture_output=True)
    assert_same(output, whole)


@pytest.mark.llama
@built_in
def test_nobody_answers() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(LlamaError, match="no RPC server answers"):
        rpc.add_servers([endpoint])


@pytest.mark.llama
@built_in
def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        result = subprocess.run(
            [*COMMAND, "rpc-server", "--listen", endpoint], capture_output=True, text=True
        )
    assert result.returncode == LlamaError.exit_code
    assert "cannot listen there" in result.stderr


@pytest.mark.llama
@built_in
def test_a_warning_beyond_this_machine() -> None:
    command = [*COMMAND, "rpc-server", "--listen", "0.0.0.0:0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "is not HOST:PORT" in result.stderr
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        command[-1] = f"0.0.0.0:{port}"
        result = subprocess.run(command, capture_output=True, text=True)
    assert "no authentication" in result.stderr
