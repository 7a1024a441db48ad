"""Quantizing: against the gguf package's own quantizers, and what happens when llama.cpp dies."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ggprune.cli.quantize import command
from ggprune.errors import InputError, LlamaError, MismatchError, OutputError, UnsupportedModelError
from ggprune.gguf_file import GgufModel, KeyEdits, lay_out, whole, write_files
from ggprune.llama.library import library
from ggprune.llama.memory import check_loads
from ggprune.llama.options import QuantizeOptions
from ggprune.llama.quantizer import ALIASES, FILE_TYPES, quantize, tensor_type
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.quantization.imatrix import Entry, Imatrix
from ggprune.quantization.names import file_type, result_stem
from ggprune.quantization.quantize import Quantizer
from ggprune.rewrite import plan_rewrite
from tests.support.tiny import write_tiny

EXPERTS = "blk.1.ffn_down_exps.weight"
PLAN = Plan(8, {layer: LayerPlan(tuple(range(0, 16, 2))) for layer in (0, 1)}, experts=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return write_tiny(folder / "Tiny-F32.gguf", "qwen3moe", layers=2, seed=1)


@pytest.fixture
def quantizer(source: Path, tmp_path: Path) -> Quantizer:
    with GgufModel(source) as model:
        yield Quantizer(model, QuantizeOptions(threads=1), tmp_path)


def imatrix_of(path: Path, target: Path) -> Path:
    """An importance matrix that makes a difference: some columns matter much more."""
    random = np.random.default_rng(2)
    entries = {}
    with GgufModel(path) as model:
        for tensor in model.tensors:
            if len(tensor.shape) > 1 and tensor.name.startswith("blk."):
                matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
                sums = random.lognormal(0, 4, (matrices, tensor.shape[0])).astype(np.float32)
                entries[tensor.name] = Entry(sums, np.ones(matrices, np.float32))
    Imatrix(entries, ("text.txt",), 5, 64).save(target)
    return target


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


# --- names


@pytest.mark.llama
def test_types_are_those_of_llama_cpp() -> None:
    api = library().api
    for name, number in FILE_TYPES.items():
        if name != "COPY":
            kind = "ALL" if name == "F32" else "MOSTLY"
            assert getattr(api, f"LLAMA_FTYPE_{kind}_{name}") == number
    left = {
        name.split("_", 3)[3]
        for name in vars(api)
        if name.startswith(("LLAMA_FTYPE_MOSTLY", "LLAMA_FTYPE_ALL"))
    }
    # llama-quantize does not offer this one either.
    assert left - set(FILE_TYPES) <= {"NVFP4"}


def test_names_are_forgiving() -> None:
    assert file_type("q4_k_m") == file_type("Q4_K") == ALIASES["Q4_K"] == "Q4_K_M"
    assert tensor_type("q6_k") == 14
    with pytest.raises(InputError, match="Q9"):
        file_type("Q9")
    with pytest.raises(InputError, match="q4_k_m"):
        tensor_type("q4_k_m")


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("Big-Q8_0", "Big"),
        ("Big.q4_k_m", "Big"),
        ("Big-BF16", "Big"),
        ("Big-UD-Q4_K_XL", "Big"),
        ("Big-IQ3_XXS", "Big"),
        ("Big-MXFP4_MOE", "Big"),
        ("Big-Q8_0-109e", "Big-109e"),
        ("Big-26B-A4B-it", "Big-26B-A4B-it"),
        ("Q8_0", "Q8_0"),
        ("Qwen3-30B-F16", "Qwen3-30B"),
    ],
)
def test_result_names(stem: str, expected: str) -> None:
    assert result_stem(stem) == expected


# --- results


@pytest.mark.llama
def test_q8_0_is_what_the_gguf_package_makes(quantizer: Quantizer, source: Path) -> None:
    result = quantizer.run("Q8_0")
    assert [path.name for path in result.paths] == ["Tiny-Q8_0.gguf"]
    before, after = tensors(source), tensors(result.paths[0])
    assert after[EXPERTS].tensor_type.name == "Q8_0"
    wanted = gguf.quants.quantize(before[EXPERTS].data, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(after[EXPERTS].data, wanted)
    norm = "blk.0.attn_norm.weight"
    np.testing.assert_array_equal(after[norm].data, before[norm].data)


@pytest.mark.llama
def test_dry_run_tells_the_size(quantizer: Quantizer, tmp_path: Path) -> None:
    forecast = quantizer.forecast("Q4_0")
    assert not list(tmp_path.iterdir())
    result = quantizer.run("Q4_0")
    assert abs(forecast.size - result.size) < 1024
    assert forecast.tensor_types.keys() == {
        kind.tensor_type.name for kind in tensors(result.paths[0]).values()
    }
    assert quantizer.forecast("IQ2_XXS").fallbacks  # Rows of 32 are no multiple of 256.


@pytest.mark.llama
def test_progress_adds_up(quantizer: Quantizer) -> None:
    done: list[int] = []
    quantizer.run("Q5_0", progress=done.append)
    assert sum(done) == quantizer.source_bytes


@pytest.mark.llama
def test_options_reach_llama_cpp(source: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(
        tensor_types=((r"blk\.1\.ffn_down", "q5_1"),),
        output_type="f16",
        token_embedding_type="q4_1",
        threads=1,
    )
    with GgufModel(source) as model:
        result = Quantizer(model, options, tmp_path).run("Q4_0")
        pure = Quantizer(model, QuantizeOptions(pure=True), tmp_path, stem="pure").run("Q4_0")
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors(result.paths[0]).items()}
    assert kinds[EXPERTS] == "Q5_1" and kinds["blk.0.ffn_down_exps.weight"] == "Q4_0"
    assert kinds["output.weight"] == "F16" and kinds["token_embd.weight"] == "Q4_1"
    assert tensors(pure.paths[0])["output.weight"].tensor_type.name == "Q4_0"


@pytest.mark.llama
def test_importance_matrix_changes_weights_and_is_named(source: Path, tmp_path: Path) -> None:
    path = imatrix_of(source, tmp_path / "i.gguf")
    with GgufModel(source) as model:
        plain = Quantizer(model, QuantizeOptions(), tmp_path).run("Q4_0").paths[0]
        options = QuantizeOptions(imatrix=path)
        helped = Quantizer(model, options, tmp_path, stem="helped").run("Q4_0").paths[0]
    weight = tensors(source)[EXPERTS].data.reshape(16, 32, -1)
    importance = Imatrix.load(path).entries[EXPERTS].sums[:, None, :]
    errors = [
        float((importance * (gguf.quants.dequantize(t.data, t.tensor_type) - weight) ** 2).sum())
        for t in (tensors(file)[EXPERTS] for file in (plain, helped))
    ]
    # What quantization minimises with the matrix: the error weighed by importance.
    assert errors[1] < 0.8 * errors[0]
    fields = gguf.GGUFReader(helped).fields
    assert fields["quantize.imatrix.file"].contents() == "i.gguf"
    assert fields["quantize.imatrix.dataset"].contents() == "text.txt"
    assert fields["quantize.imatrix.chunks_count"].contents() == 5


def test_importance_matrix_of_the_wrong_model(source: Path, tmp_path: Path) -> None:
    cut = Imatrix.load(imatrix_of(source, tmp_path / "i.gguf")).sliced(PLAN)
    cut.save(tmp_path / "cut.gguf")
    options = QuantizeOptions(imatrix=tmp_path / "cut.gguf")
    with GgufModel(source) as model, pytest.raises(MismatchError, match="needs 32 x 16"):
        Quantizer(model, options, tmp_path)


def test_matrices_without_importance_are_told(source: Path, tmp_path: Path) -> None:
    full = Imatrix.load(imatrix_of(source, tmp_path / "i.gguf"))
    entries = {name: entry for name, entry in full.entries.items() if name != EXPERTS}
    replace(full, entries=entries).save(tmp_path / "part.gguf")
    options = QuantizeOptions(imatrix=tmp_path / "part.gguf")
    with GgufModel(source) as model:
        assert Quantizer(model, options, tmp_path).uncovered == (EXPERTS,)


@pytest.mark.llama
def test_quantized_source_needs_consent(source: Path, tmp_path: Path) -> None:
    run(source, "Q8_0", "-o", tmp_path)
    refused = run(tmp_path / "Tiny-Q8_0.gguf", "Q4_0", "-o", tmp_path)
    assert not (tmp_path / "Tiny-Q4_0.gguf").exists()
    assert isinstance(refused.exception, InputError)
    assert "quantized already, mostly Q8_0" in refused.exception.message
    allowed = run(tmp_path / "Tiny-Q8_0.gguf", "Q4_0", "-o", tmp_path, "--allow-requantize")
    assert allowed.exit_code == 0 and "stays lost" in allowed.stderr
    assert (tmp_path / "Tiny-Q4_0.gguf").exists()


@pytest.mark.llama
def test_shards_stay_shards(source: Path, tmp_path: Path) -> None:
    with GgufModel(source) as model:
        parts = [whole(tensor) for tensor in model.tensors]
        target = tmp_path / "Split-F32.gguf"
        files = lay_out(target, model, KeyEdits(), parts, split_max_size=300_000)
        write_files(files, model)
        whole_file = Quantizer(model, QuantizeOptions(), tmp_path).run("Q8_0").paths[0]
    assert len(files) > 2
    with GgufModel(files[0].path) as model:
        options = QuantizeOptions(keep_split=True)
        result = Quantizer(model, options, tmp_path / "new").run("Q8_0")
    names = [f"Split-Q8_0-{n:05d}-of-{len(files):05d}.gguf" for n in range(1, len(files) + 1)]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    with GgufModel(result.paths[0]) as model, GgufModel(whole_file) as one:
        assert {t.name: model.read(t) for t in model.tensors} == {
            t.name: one.read(t) for t in one.tensors
        }


@pytest.mark.llama
def test_other_alignment(tmp_path: Path) -> None:
    """llama.cpp pads to 32 whatever the source says; without care its result does not load."""
    reader = gguf.GGUFReader(write_tiny(tmp_path / "a.gguf", "qwen3moe", layers=1))
    writer = gguf.GGUFWriter(tmp_path / "wide-F32.gguf", "qwen3moe")
    writer.add_custom_alignment(64)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufModel(tmp_path / "wide-F32.gguf") as model:
        result = Quantizer(model, QuantizeOptions(), tmp_path).run("Q8_0").paths[0]
    with GgufModel(result) as model:
        assert model.files[0].alignment == 32
    after = tensors(result)
    for tensor in reader.tensors:
        data = tensor.data
        if after[tensor.name].tensor_type.name == "Q8_0":
            data = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(after[tensor.name].data, data, err_msg=tensor.name)


# --- from a plan


@pytest.mark.llama
def test_from_plan_equals_pruning_then_quantizing(source: Path, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    imatrix = imatrix_of(source, tmp_path / "i.gguf")
    out, tmp = tmp_path / "out", tmp_path / "tmp"
    words = ["--from-plan", tmp_path / "plan.json", "--source", source, "-o", out, "--tmp", tmp]
    result = run(*words, "--imatrix", imatrix, "Q8_0", "Q4_0")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["Tiny-8e-Q4_0.gguf", "Tiny-8e-Q8_0.gguf"]
    assert not list(tmp.iterdir())
    description = open_model(source)
    rewrite = plan_rewrite(description, PLAN, tmp_path / "pruned.gguf")
    write_files(rewrite.files, description.gguf)
    Imatrix.load(imatrix).sliced(PLAN).save(tmp_path / "cut.gguf")
    run(tmp_path / "pruned.gguf", "Q4_0", "--imatrix", tmp_path / "cut.gguf")
    ours, theirs = tensors(out / "Tiny-8e-Q4_0.gguf"), tensors(tmp_path / "pruned-Q4_0.gguf")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.data, theirs[name].data, err_msg=name)


@pytest.mark.llama
def test_from_plan_leaves_nothing_when_it_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLAN.save(tmp_path / "plan.json")
    out = tmp_path / "out"
    words = ["--from-plan", tmp_path / "plan.json", "--source", source, "-o", out]
    child_that("sys.exit(3)")(monkeypatch, tmp_path)
    assert run(*words, "Q8_0").exit_code == LlamaError.exit_code
    assert not list(out.iterdir())
    usage = run("--from-plan", tmp_path / "plan.json", "Q8_0")
    assert usage.exit_code == 2 and "go together" in usage.stderr


# --- what goes wrong


@pytest.mark.llama
def test_one_failing_type_leaves_the_others(source: Path, tmp_path: Path) -> None:
    (tmp_path / "Tiny-Q5_0.gguf").write_text("mine")
    result = run(source, "Q8_0", "Q5_0", "Q4_0", "-o", tmp_path, "--json")
    assert result.exit_code == OutputError.exit_code
    told = json.loads(result.stdout)
    assert [each["type"] for each in told["results"]] == ["Q8_0", "Q4_0"]
    assert "exists" in told["errors"]["Q5_0"]
    assert (tmp_path / "Tiny-Q5_0.gguf").read_text() == "mine"
    assert run(source, "Q5_0", "-o", tmp_path, "--force").exit_code == 0


def test_the_source_is_never_replaced(source: Path) -> None:
    before = source.read_bytes()
    assert run(source, "F32", "--force").exit_code == OutputError.exit_code
    assert source.read_bytes() == before


def test_what_is_no_model_is_refused(source: Path, tmp_path: Path) -> None:
    path = imatrix_of(source, tmp_path / "i.gguf")
    with GgufModel(path) as model, pytest.raises(UnsupportedModelError, match="not a model"):
        Quantizer(model, QuantizeOptions(), tmp_path)
    with GgufModel(source) as model, pytest.raises(InputError, match="not a regular expression"):
        Quantizer(model, QuantizeOptions(tensor_types=(("a[", "q8_0"),)), tmp_path)


def child_that(does: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """Replace the child by a script."""

    def patch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        script = folder / "child"
        script.write_text(f"#!{sys.executable}\nimport os, sys, time\n{does}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return patch


@pytest.mark.llama
@pytest.mark.parametrize(
    ("does", "message"),
    [
        (
            "print('x.c:9: GGML_ASSERT(n > 0) failed', file=sys.stderr, flush=True); os.abort()",
            f"died of signal {int(signal.SIGABRT)}: x.c:9: GGML_ASSERT",
        ),
        ("os.kill(os.getpid(), 9)", "was killed"),
        ("os.kill(os.getpid(), 11)", f"died of signal {int(signal.SIGSEGV)}"),
        ("sys.exit(3)", "refused: it said nothing"),
    ],
)
def test_a_crash_is_an_error_like_any_other(
    quantizer: Quantizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    does: str,
    message: str,
) -> None:
    child_that(does)(monkeypatch, tmp_path)
    with pytest.raises(LlamaError) as error:
        quantizer.run("Q8_0")
    assert message in error.value.message and error.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


@pytest.mark.llama
def test_a_child_that_is_gone_before_it_is_told_what_to_do(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that("print('GGML_ASSERT early', file=sys.stderr, flush=True); os.abort()")(
        monkeypatch, tmp_path
    )
    dumps = json.dumps

    def slowly(value: object) -> str:
        time.sleep(1)
        return dumps(value)

    monkeypatch.setattr("ggprune.llama.quantizer.json.dumps", slowly)
    with pytest.raises(LlamaError, match="GGML_ASSERT early"):
        quantizer.run("Q8_0")


@pytest.mark.llama
def test_interrupt_ends_the_child_and_leaves_nothing(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = quantizer.forecast("Q8_0")
    monkeypatch.setattr(quantizer, "forecast", lambda _: forecast)
    child_that("print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)")(
        monkeypatch, tmp_path
    )
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizer, "_log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantizer.run("Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["child"]
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


@pytest.mark.llama
def test_what_llama_cpp_wrote_is_looked_at(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = quantizer.forecast("Q8_0")
    monkeypatch.setattr(quantizer, "forecast", lambda _: forecast)
    child_that(
        "import json; job = json.loads(sys.stdin.readline()); open(job['target'], 'w').write('no')"
    )(monkeypatch, tmp_path)
    with pytest.raises(Exception, match="not a GGUF file"):
        quantizer.run("Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


@pytest.mark.llama
def test_the_child_goes_with_its_parent(source: Path, tmp_path: Path) -> None:
    """Its input ends when the parent dies, however it dies."""
    import subprocess

    with subprocess.Popen(
        [sys.executable, "-m", "ggprune.llama.quantizer"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        job = {"source": str(source), "target": str(tmp_path / "x.gguf"), "imatrix": []}
        # The job is complete, but nobody is there any more to use the result.
        child.stdin.write((json.dumps(job) + "\n").encode())
        child.stdin.close()
        assert child.wait(timeout=60) == 1
    with pytest.raises(LlamaError, match="refused"):
        quantize(tmp_path / "none.gguf", tmp_path / "x.gguf", "Q8_0", QuantizeOptions(), print)


# --- pruned models, MTP layers, shards of a size


def pruned(path: Path, keep: int, target: Path) -> Path:
    with open_model(path) as model:
        layers = dict.fromkeys(model.moe_layers, LayerPlan(tuple(range(keep))))
        rewrite = plan_rewrite(model, Plan(keep, layers), target)
        write_files(rewrite.files, model.gguf)
    return target


def types_of(path: Path) -> dict[str, str]:
    return {name: tensor.tensor_type.name for name, tensor in tensors(path).items()}


@pytest.mark.llama
@pytest.mark.parametrize(
    ("architecture", "experts", "keep"), [("llama", 8, 6), ("qwen3moe", 16, 8), ("llama", 8, 2)]
)
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q3_K_M", "IQ3_S"])
def test_a_pruned_model_is_quantized_like_the_whole_one(
    tmp_path: Path, architecture: str, experts: int, keep: int, kind: str
) -> None:
    """llama.cpp takes other types for attention where there are exactly 8 experts."""
    path = write_tiny(tmp_path / "Whole-F32.gguf", architecture, experts=experts, used=2, layers=3)
    small = pruned(path, keep, tmp_path / "Small-F32.gguf")
    imatrix = [imatrix_of(each, tmp_path / f"{each.stem}.imatrix.gguf") for each in (path, small)]
    found = {}
    for each, matrix in zip((path, small), imatrix, strict=True):
        with GgufModel(each) as model:
            quantizer = Quantizer(model, QuantizeOptions(imatrix=matrix), tmp_path)
            forecast = quantizer.forecast(kind)
            found[each] = types_of(quantizer.run(kind).paths[0])
            assert {n: t.upper() for n, t in forecast.types.items()} == found[each]
    assert found[small] == found[path]


@pytest.mark.llama
def test_types_that_pruning_does_not_change_are_left_to_llama_cpp(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "Whole-F32.gguf", "qwen3moe", layers=2)
    small = pruned(path, 12, tmp_path / "Small-F32.gguf")
    with GgufModel(small) as model:
        quantizer = Quantizer(model, QuantizeOptions(), tmp_path)
        assert quantizer._unpruned_types("Q4_K_M") == ()


@pytest.mark.llama
def test_the_users_types_come_before_those_of_the_whole_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "Whole-F32.gguf", "llama", experts=8, used=2, layers=2)
    small = pruned(path, 6, tmp_path / "Small-F32.gguf")
    options = QuantizeOptions(tensor_types=(("attn_v", "q5_1"),))
    with GgufModel(small) as model:
        found = types_of(Quantizer(model, options, tmp_path).run("Q4_K_M").paths[0])
    assert {found[name] for name in found if "attn_v" in name} == {"Q5_1"}
    assert {found[name] for name in found if "attn_k.weight" in name} == {"Q8_0"}


@pytest.mark.llama
def test_shards_of_a_size(source: Path, tmp_path: Path) -> None:
    limit = 50_000
    with GgufModel(source) as model:
        whole_file = Quantizer(model, QuantizeOptions(), tmp_path / "one").run("Q8_0").paths[0]
        options = QuantizeOptions(split_max_size=limit)
        quantizer = Quantizer(model, options, tmp_path / "many")
        forecast, result = quantizer.forecast("Q8_0"), quantizer.run("Q8_0")
        assert forecast.paths == result.paths and len(result.paths) > 2
        assert sorted(result.paths) == sorted((tmp_path / "many").iterdir())
        assert max(path.stat().st_size for path in result.paths) <= limit
        assert result.size == sum(path.stat().st_size for path in result.paths)
        with pytest.raises(OutputError, match="exists"):
            quantizer.run("Q8_0")
        quantizer.run("Q8_0", force=True)
        large = replace(options, split_max_size=10**9)
        single = Quantizer(model, large, tmp_path / "large").run("Q8_0").paths
        assert [p.name for p in single] == ["Tiny-Q8_0.gguf"]
        with pytest.raises(InputError, match="one or the other"):
            Quantizer(model, QuantizeOptions(keep_split=True, split_max_size=9), tmp_path)
    assert single[0].read_bytes() == whole_file.read_bytes()
    check_loads(result.paths[0])
    with GgufModel(result.paths[0]) as model, GgufModel(whole_file) as one:
        assert {t.name: model.read(t) for t in model.tensors} == {
            t.name: one.read(t) for t in one.tensors
        }


@pytest.mark.llama
@pytest.mark.parametrize("mtp", ["prune", "drop"])
def test_from_plan_with_mtp_layers(tmp_path: Path, mtp: str) -> None:
    """The plan names no MTP layers, as those that `ggprune plan` makes of statistics alone."""
    path = write_tiny(tmp_path / "Mtp-F32.gguf", "glm4moe")
    with open_model(path) as model:
        layers = dict.fromkeys(model.moe_layers, LayerPlan((0, 3, 5, 7, 8, 9, 10, 15)))
        Plan(8, layers, experts=16).save(tmp_path / "plan.json")
        (layer,) = model.mtp_layers
    imatrix = imatrix_of(path, tmp_path / "i.gguf")
    assert f"blk.{layer}.ffn_down_exps.weight" in Imatrix.load(imatrix).entries
    words = ["--from-plan", tmp_path / "plan.json", "--source", path, "-o", tmp_path / "out"]
    result = run(*words, "--imatrix", imatrix, "--mtp", mtp, "Q8_0")
    assert result.exit_code == 0, result.output
    with open_model(tmp_path / "out" / "Mtp-8e-Q8_0.gguf") as model:
        assert model.experts == 8
        assert model.mtp_layers == ((layer,) if mtp == "prune" else ())
    # The same by the two commands.
    Imatrix.load(imatrix).sliced(Plan.load(tmp_path / "plan.json")).save(tmp_path / "cut.gguf")
    with open_model(path) as model:
        plan = Plan.load(tmp_path / "plan.json")
        rewrite = plan_rewrite(model, plan, tmp_path / "Small-F32.gguf", mtp=mtp)
        write_files(rewrite.files, model.gguf)
    result = run(tmp_path / "Small-F32.gguf", "Q8_0", "--imatrix", tmp_path / "cut.gguf")
    assert result.exit_code == 0, result.output
    ours, theirs = (
        tensors(tmp_path / "out" / "Mtp-8e-Q8_0.gguf"),
        tensors(tmp_path / "Small-Q8_0.gguf"),
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.data, theirs[name].data, err_msg=name)
