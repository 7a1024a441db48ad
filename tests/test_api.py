"""The Python API: what is public, and that its stages compose."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ggprune
from ggprune import errors
from ggprune.gguf_file import GgufModel
from ggprune.plan import LayerPlan, Plan
from ggprune.system import MOVES_OPEN_FILES, try_lock
from ggprune.types import Advance
from ggprune.version import VERSION
from tests.support.tiny import write_tiny


def test_all_names_exist_and_are_documented() -> None:
    for name in ggprune.__all__:
        thing = getattr(ggprune, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


def test_the_whole_tree_of_errors_is_public() -> None:
    tree = {cls for cls in vars(errors).values() if inspect.isclass(cls)}
    assert {getattr(ggprune, cls.__name__) for cls in tree} == tree
    assert all(issubclass(cls, ggprune.GgpruneError) for cls in tree)


def test_version() -> None:
    assert ggprune.__version__ == VERSION


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ggprune.no_such_name


@pytest.mark.process
def test_import_is_light() -> None:
    code = "import ggprune, sys; sys.exit('numpy' in sys.modules or 'llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "m.gguf", "gemma4", layers=2)


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "t.txt"
    path.write_text("A router chooses experts for each token of a text.\n" * 40)
    return {"words": path}


@pytest.mark.llama
def test_stages(tmp_path: Path, model: Path, text: dict[str, Path]) -> None:
    options = ggprune.RunOptions(threads=1)
    settings = ggprune.Settings(ctx=64)
    statistics = ggprune.calibrate(model, text=text, settings=settings, options=options)
    plan = ggprune.choose(statistics, keep=12, method="contribution")
    applied = ggprune.apply(model, plan, tmp_path / "o.gguf")
    assert ggprune.open_model(applied.path).experts == 12
    assert applied.compared == sum(t.nbytes for t in GgufModel(applied.path).tensors)
    written = json.loads((tmp_path / "o.expert_drop_metadata.json").read_text())
    assert written == applied.metadata and written["keep"] == 12
    by_mask = ggprune.evaluate(model, plan, text=text, ctx=64, options=options).total
    assert by_mask.as_json()["kld_mean"] > 0
    by_file = ggprune.evaluate(model, applied.path, text=text, ctx=64, options=options).total
    assert by_file.kld_mean == pytest.approx(by_mask.kld_mean, rel=1e-3)


@pytest.mark.llama
def test_the_whole_job(
    tmp_path: Path, model: Path, text: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    settings = ggprune.Settings(ctx=64, generate=0)
    options = ggprune.RunOptions(threads=1)
    shown: list[str] = []

    @contextmanager
    def progress(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[Advance]:
        if MOVES_OPEN_FILES and what == "calibrating":
            # From the start, nobody else can write the result.
            with open(tmp_path / "o.gguf.part", "rb") as stream:
                assert not try_lock(stream.fileno())
        done: list[int] = [initial]
        yield done.append
        assert sum(done) == total, what
        shown.append(what)

    same = {"text": text, "settings": settings, "options": options, "progress": progress}
    pruned = ggprune.prune(model, tmp_path / "o.gguf", keep=12, modelfile=True, **same)
    assert pruned.plan.keep == pruned.metadata["keep"] == 12
    assert pruned.evaluation is not None and pruned.evaluation["kld_mean"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("m.gguf", "t.txt", "o.gguf", "m.stats.gguf"),
        *("o.expert_drop_metadata.json", "o.report.html", "Modelfile"),
    }
    assert shown == ["calibrating", "writing", "measuring"]
    # Another size needs no second calibration.
    caplog.set_level("INFO", "ggprune")
    again = ggprune.prune(model, tmp_path / "p.gguf", keep=10, verify=False, **same)
    assert again.plan.keep == 10 and "calibrating" not in shown[3:]
    assert "same model, text and settings" in caplog.text
    # A plan in place of choosing gives the same file.
    plan = ggprune.choose(tmp_path / "m.stats.gguf", tmp_path / "plan.json", keep=10)
    given = ggprune.prune(model, tmp_path / "q.gguf", plan=plan, verify=False)
    assert given.statistics is None
    assert given.path.read_bytes() == again.path.read_bytes()


@pytest.mark.llama
def test_interrupted_while_measuring(
    tmp_path: Path, model: Path, text: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    settings, options = ggprune.Settings(ctx=64, generate=0), ggprune.RunOptions(threads=1)
    same = {"text": text, "settings": settings, "options": options}
    result, metadata = tmp_path / "o.gguf", tmp_path / "o.expert_drop_metadata.json"

    @contextmanager
    def progress(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[Advance]:
        if what == "measuring":
            raise KeyboardInterrupt
        yield lambda _: None

    with pytest.raises(
        ggprune.Interrupted, match=r"o\.gguf is complete, but not measured"
    ) as error:
        ggprune.prune(model, result, keep=12, progress=progress, **same)
    assert f"ggprune evaluate {model} {result}" in error.value.remedy
    written = json.loads(metadata.read_text())
    assert written["keep"] == 12 and written["evaluation"] is None
    # What it was made with may not be what is wanted now.
    with pytest.raises(ggprune.OutputError, match="exists"):
        ggprune.prune(model, result, keep=10, **same)
    with pytest.raises(ggprune.OutputError, match="exists"):
        ggprune.prune(model, result, keep=12, method="random", **same)
    before = result.stat()
    caplog.set_level("INFO", "ggprune")
    pruned = ggprune.prune(model, result, keep=12, **same)
    assert "an earlier run has written it" in caplog.text
    after = result.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert pruned.evaluation is not None and pruned.compared > 0
    assert json.loads(metadata.read_text())["evaluation"] == pruned.evaluation
    with pytest.raises(ggprune.OutputError, match="exists"):
        ggprune.prune(model, result, keep=12, **same)


@pytest.mark.llama
def test_the_context_that_is_measured_with(
    tmp_path: Path, model: Path, text: dict[str, Path]
) -> None:
    settings = ggprune.Settings(ctx=64, generate=0)
    options = ggprune.RunOptions(threads=1)
    ggprune.calibrate(model, tmp_path / "s.gguf", text=text, settings=settings, options=options)
    same = {"text": text, "eval_text": text, "settings": settings, "options": options}
    same |= {"keep": 12, "statistics": tmp_path / "s.gguf", "force": True}
    for given, ctx in ((None, 64), (32, 32)):
        pruned = ggprune.prune(model, tmp_path / "o.gguf", eval_ctx=given, **same)
        # The second half of each chunk is scored, but for its first token.
        assert pruned.evaluation is not None
        assert pruned.evaluation["tokens"] % (ctx - ctx // 2 - 1) == 0


def test_what_would_be_written(tmp_path: Path, model: Path) -> None:
    (file,) = ggprune.outputs(model, tmp_path / "o.gguf", ratio=0.5)
    assert file.path == tmp_path / "o.gguf" and not file.path.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "how many experts"),
        ({"keep": 8, "ratio": 0.5}, "keep"),
        ({"keep": 1}, "keep"),
        ({"keep": 16}, "keep=16: the model has 16 experts, so there is nothing to do"),
        ({"target_size": 10**12}, "all 16 experts would stay, so there is nothing to do"),
        pytest.param(
            {"fit_vram": 10**12},
            "all 16 experts would stay, so there is nothing to do",
            marks=pytest.mark.llama,
        ),
        ({"ratio": 0.0}, "all 16 experts would stay, so there is nothing to do"),
    ],
)
def test_a_wrong_budget(model: Path, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ggprune.InputError, match=message):
        ggprune.outputs(model, **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep": "48"}, "keep='48': expected a whole number"),
        ({"keep": 48.5}, "keep=48.5: expected a whole number"),
        ({"keep": True}, "keep=True: expected a whole number"),
        ({"keep": 0}, "keep=0: expected at least 1"),
        ({"ratio": 1.5}, "ratio=1.5: expected less than 1"),
        ({"retain": float("nan")}, "retain=nan: expected"),
        ({"target_size": "13 quarts"}, "target_size='13 quarts' is not a size"),
        ({"keep": 12, "rounding": "dwon"}, "rounding='dwon': expected one of down, up. Did you"),
        ({"keep": 12, "always_keep": 3}, "always_keep=3: expected a tuple"),
        ({"keep": 12, "experts_used": "all"}, "experts_used='all': expected a whole number"),
        ({"keep": 12, "split_max_size": "big"}, "split_max_size='big' is not a size"),
        ({"keep": 12, "super_experts": "no"}, "super_experts='no': expected True or False"),
    ],
)
def test_a_wrong_value(model: Path, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ggprune.InputError, match=re.escape(message)):
        ggprune.outputs(model, **asked)


@pytest.mark.parametrize(
    ("record", "given", "message"),
    [
        (ggprune.Settings, {"ctx": "a"}, "ctx='a': expected a whole number"),
        (ggprune.Settings, {"parallel": 1000}, "parallel=1000: expected at most 256"),
        (ggprune.Settings, {"temperature": "hot"}, "temperature='hot': expected a number"),
        (ggprune.RunOptions, {"threads": -3}, "threads=-3: expected at least 1"),
        (ggprune.RunOptions, {"flash_attn": "maybe"}, "expected one of on, off, auto"),
        (ggprune.RunOptions, {"tensor_split": (1, "b")}, "tensor_split='b': expected a number"),
        (ggprune.RunOptions, {"ubatch": None}, "ubatch=None: expected a whole number"),
    ],
)
def test_a_wrong_option(record: type, given: dict[str, object], message: str) -> None:
    with pytest.raises(ggprune.InputError, match=re.escape(message)):
        record(**given)


def test_sizes_and_single_values_may_be_text() -> None:
    assert ggprune.Budget(target_size="13G").target_size == 13 * 10**9
    assert ggprune.Budget(fit_vram="24GiB", context="32k").fit_vram == 24 << 30
    assert ggprune.Budget(fit_vram=1, context="32k").context == 32 << 10
    asked = ggprune.Request(
        budget=ggprune.Budget(keep=1), always_keep="3:17,44", protect_domains=["code"]
    )
    assert asked.always_keep == ("3:17,44",) and asked.protect_domains == ("code",)
    assert ggprune.QuantizeOptions(imatrix="i.gguf").imatrix == Path("i.gguf")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kep": 12}, "'kep'. Did you mean keep?"),
        ({"keep": 12, "protect_domain": "code"}, "Did you mean protect_domains?"),
        ({"keep": 12, "ouput": "o.gguf"}, "Did you mean output?"),
    ],
)
def test_an_unknown_argument(model: Path, asked: dict[str, object], message: str) -> None:
    for function in (ggprune.prune, ggprune.outputs, ggprune.choose):
        text = f"{function.__name__}() got an unexpected keyword argument "
        with pytest.raises(TypeError, match=re.escape(text)) as error:
            function(model, **asked)
        assert message in str(error.value)


def test_a_plan_decides_what_else_could_be_asked(model: Path) -> None:
    layers = {n: LayerPlan(tuple(range(12)), None) for n in range(2)}
    plan = Plan(12, layers, "mine", 16, "gemma4")
    with pytest.raises(TypeError, match="plan and keep: give one of them"):
        ggprune.prune(model, plan=plan, keep=12)


@pytest.mark.parametrize("text", ["foo.txt", ["foo.txt"], [Path("foo.txt")]])
@pytest.mark.parametrize("name", ["text", "eval_text", "search_text"])
def test_a_text_without_a_domain(model: Path, name: str, text: object) -> None:
    with pytest.raises(ggprune.InputError, match="has no name of a domain") as error:
        ggprune.prune(model, keep=12, **{name: text})
    assert error.value.message.startswith(f"{name}: ")
    assert error.value.remedy == f"Write {name}={{'foo': 'foo.txt'}}."
