"""Calibration runs: the same numbers however they are computed, cut, packed, broken off."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggprune
from ggprune.calibration import run as calibrate
from ggprune.calibration.checkpoint import Checkpoint
from ggprune.calibration.merge import merge
from ggprune.calibration.resume import partial_path
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.errors import (
    InputError,
    Interrupted,
    LlamaError,
    MismatchError,
    NonFiniteError,
    OutputError,
)
from ggprune.llama.callback import Observer
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaModel
from ggprune.model import open_model
from ggprune.quantization.imatrix import Imatrix
from ggprune.quantization.importance import ImatrixObserver
from ggprune.text.builtin import builtin_texts
from ggprune.text.chat import ChatTemplate
from ggprune.text.documents import Document, Message, Source
from tests.support.calibrating import EXACT, Breaking, assert_same
from tests.support.command import COMMAND
from tests.support.halting import halting
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.llama

OPTIONS = RunOptions(threads=1, ubatch=32, **EXACT)
WORDS = ["the", "tired", "road", "notes", "a", "distant", "inner", "sea", "and", "rests", "there"]


def prose(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


#: Two domains: long texts that are cut, and many short ones that are packed.
LONG = Source("long", tuple(Document(text=prose(seed, 150)) for seed in range(2)))
SHORT = Source("short", tuple(Document(text=prose(seed, 8)) for seed in range(40)))
PROMPTS = Source(
    "chat",
    tuple(Document(messages=(Message("user", prose(seed, 5)),)) for seed in range(6)),
)


@contextmanager
def silent(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[object]:
    yield lambda _: None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "gemma4.gguf", "gemma4")


def run(
    path: Path,
    *,
    observers: Sequence[Observer] = (),
    sources: Sequence[Source] = (LONG, SHORT),
    partial: Path | None = None,
    progress: object = silent,
    options: RunOptions = OPTIONS,
    seconds: float = 60.0,
    **settings: object,
) -> Statistics:
    chosen = Settings(**{"ctx": 96, "generate": 0, **settings})
    how = (chosen, options, progress, observers, seconds)
    return Run(open_model(path), sources, *how).run(partial)


def test_every_layer_sees_every_token(path: Path) -> None:
    model = open_model(path)
    for domain in run(path).domains:
        assert (domain.sums.tokens == domain.tokens).all()
        assert (domain.sums.count.sum(1) == domain.tokens * model.experts_used).all()


def test_texts_are_cut_into_consecutive_chunks(path: Path) -> None:
    """Counted here: tokens of the text, and one BOS for each chunk."""
    with LlamaModel(path, OPTIONS, vocab_only=True) as llama:
        bodies = [len(llama.tokenize(d.text, add_special=False)) for d in LONG.documents]
    expected = sum(body + -(-body // 95) for body in bodies)
    assert run(path, sources=[LONG]).domains[0].tokens == expected


def test_a_larger_context_changes_nothing_for_short_texts(path: Path) -> None:
    assert_same(run(path, sources=[SHORT], ctx=512), run(path, sources=[SHORT]), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(threads=2, ubatch=32, **EXACT),
        RunOptions(threads=1, ubatch=512, **EXACT),
        RunOptions(threads=1, ubatch=32, mmap=False, **EXACT),
    ],
)
def test_how_it_is_computed_changes_nothing(path: Path, options: RunOptions) -> None:
    assert_same(run(path, options=options), run(path), 1e-4)


@pytest.mark.parametrize("architecture", ["qwen3moe", "glm4moe", "jamba"])
def test_packed_equals_one_by_one(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    packed = run(path)
    monkeypatch.setattr("ggprune.calibration.sequences.SEQUENCES", 1)
    assert_same(packed, run(path), 1e-4)


def test_rows_are_kept_without_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run(path)
    monkeypatch.setattr(Run, "keeps_rows", lambda *_: False)
    assert_same(run(path), kept, 1e-6)


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_interrupted_and_continued_equals_uninterrupted(
    path: Path, tmp_path: Path, after: int
) -> None:
    partial = tmp_path / "s.partial"
    with pytest.raises(Interrupted) as caught:
        run(path, partial=partial, progress=Breaking(after))
    assert caught.value.exit_code == 130 and str(partial) in caught.value.remedy
    done = Checkpoint.load(partial).done
    assert done == after + 1, "what was finished before counts"
    continued, whole = run(path, partial=partial), run(path)
    assert_same(continued, whole)
    assert continued.shares is not None and whole.shares is not None
    assert np.array_equal(continued.shares.experts, whole.shares.experts)
    assert np.array_equal(continued.shares.shares, whole.shares.shares)


@pytest.mark.parametrize("after", [0, 3])
def test_an_importance_matrix_is_continued_too(path: Path, tmp_path: Path, after: int) -> None:
    def gathered(**more: object) -> tuple[Statistics, Imatrix]:
        observer = ImatrixObserver()
        return run(path, observers=[observer], **more), observer.result(["t"], 1, 96)

    partial = tmp_path / "s.partial"
    with pytest.raises(Interrupted):
        gathered(partial=partial, progress=Breaking(after))
    (statistics, matrix), (wanted, whole) = gathered(partial=partial), gathered()
    assert_same(statistics, wanted)
    assert matrix.entries.keys() == whole.entries.keys()
    for name, entry in whole.entries.items():
        assert np.array_equal(matrix.entries[name].sums, entry.sums), name
        assert np.array_equal(matrix.entries[name].counts, entry.counts), name


def test_a_signal_after_the_last_token_loses_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(prose(1, 40))

    @contextmanager
    def last(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[object]:
        yield lambda _: signal.raise_signal(signal.SIGINT)

    text, files = {"a": tmp_path / "t.txt"}, (tmp_path / "s.gguf", tmp_path / "i.gguf")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ggprune.calibrate(
                path, files[0], imatrix=files[1], text=text, options=OPTIONS, progress=last
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(file.exists() for file in files)
    assert sorted(file.name for file in tmp_path.glob("s.*")) == ["s.gguf"]


def test_a_run_without_the_importance_matrix_cannot_gain_one(path: Path, tmp_path: Path) -> None:
    partial = tmp_path / "s.partial"
    with pytest.raises(Interrupted):
        run(path, partial=partial, progress=Breaking(2))
    with pytest.raises(MismatchError, match="without the importance matrix"):
        run(path, partial=partial, observers=[ImatrixObserver()])


def test_interrupted_while_answering(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggprune.calibration.run.chat.template_of", template)
    chat = {"sources": [PROMPTS, SHORT], "generate": 12, "parallel": 2}
    whole = run(path, **chat)
    partial = tmp_path / "s.partial"
    for after in (30, 20, 30):
        with pytest.raises(Interrupted):
            run(path, partial=partial, progress=Breaking(after), **chat)
    assert_same(run(path, partial=partial, **chat), whole)


def template(llama: LlamaModel, _: object) -> ChatTemplate:
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return ChatTemplate(source, bos="<s>", eos="</s>", name="template")


def test_answers_are_replayed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggprune.calibration.run.chat.template_of", template)
    without = run(path, sources=[PROMPTS]).domains[0].tokens
    answered = run(path, sources=[PROMPTS], generate=12).domains[0].tokens
    assert without < answered <= without + 12 * len(PROMPTS.documents)
    again = run(path, sources=[PROMPTS], generate=12, seed=1)
    other = run(path, sources=[PROMPTS], generate=12)
    assert not np.array_equal(again.total.count, other.total.count)


def test_prompts_too_long_for_an_answer_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ggprune.calibration.run.chat.template_of", template)
    caplog.set_level("INFO", "ggprune")
    sources = [PROMPTS, replace(PROMPTS, domain="more")]
    found = run(path, sources=sources, generate=90)
    assert found.domains[0].tokens == run(path, sources=[PROMPTS]).domains[0].tokens
    assert caplog.messages == [
        "prompts that leave no room for an answer of 90 tokens in ctx=96 are read without one: "
        "chat 6 of 6, more 6 of 6"
    ]


def test_a_context_beyond_the_trained_one_is_not_used(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    found = run(path, ctx=999_999_999)
    trained = open_model(path).trained_context
    assert caplog.messages == [
        f"ctx=999999999: the model was trained with {trained} tokens; that many are used"
    ]
    assert found.settings["ctx"] == trained
    assert_same(found, run(path, ctx=trained))


def test_max_tokens_holds_for_prompts_and_answers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggprune.calibration.run.chat.template_of", template)
    found = run(path, sources=[PROMPTS, LONG], generate=12, max_tokens=70)
    assert all(domain.tokens <= 72 for domain in found.domains)
    assert found.domains[1].tokens >= 70


def test_a_model_larger_than_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    run(path, sources=[SHORT])
    assert caplog.messages == []
    monkeypatch.setattr(calibrate, "physical_memory", lambda: path.stat().st_size - 1)
    run(path, sources=[SHORT])
    assert "larger than this machine's memory" in caplog.text and "larger ubatch" in caplog.text


def test_without_text(path: Path) -> None:
    with pytest.raises(InputError, match="no text"):
        run(path, sources=[Source("empty", ())])


def test_an_error_keeps_what_was_gathered(path: Path, tmp_path: Path) -> None:
    partial = tmp_path / "s.partial"
    with pytest.raises(LlamaError) as caught:
        run(path, partial=partial, progress=Breaking(2, LlamaError))
    assert "continues from there" in caught.value.remedy
    assert_same(run(path, partial=partial), run(path))


def test_a_model_that_computes_nonsense_is_not_to_be_continued(tmp_path: Path) -> None:
    """It would stop at the same place."""
    path, partial = write_tiny(tmp_path / "m.gguf", "qwen2moe"), tmp_path / "s.partial"
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_down_exps.weight")
    tensor.data[:] = np.inf
    reader.data.flush()
    with pytest.raises(NonFiniteError) as caught:
        run(path, partial=partial)
    assert "continues" not in caught.value.remedy and not partial.exists()


def test_a_full_disk_does_not_end_the_run(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(self: Checkpoint, _: Path) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(Checkpoint, "save", full)
    assert_same(run(path, partial=tmp_path / "s.partial", seconds=0), run(path))
    assert "the disk is full" in caplog.messages[0]


def test_another_run_is_refused_with_what_differs(path: Path, tmp_path: Path) -> None:
    partial = tmp_path / "s.partial"
    with pytest.raises(Interrupted):
        run(path, partial=partial, progress=Breaking(1))
    with pytest.raises(MismatchError, match="ctx 96, now it is 64"):
        run(path, partial=partial, ctx=64)
    with pytest.raises(MismatchError, match="shard not set, now it is 1/2"):
        run(path, partial=partial, shard=(1, 2))
    with pytest.raises(MismatchError, match="text of 'short' differs"):
        run(path, partial=partial, sources=[LONG, Source("short", LONG.documents)])
    with pytest.raises(MismatchError, match="text of 'short' differs"):
        run(path, partial=partial, sources=[LONG])
    other = write_tiny(tmp_path / "other.gguf", "gemma4", seed=1)
    with pytest.raises(MismatchError, match="not of one model: router"):
        run(other, partial=partial)
    quantized = write_tiny(tmp_path / "quantized.gguf", "gemma4", dtype="Q8_0")
    with pytest.raises(MismatchError, match="model_bytes"):
        run(quantized, partial=partial)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_merged_equal_the_whole(path: Path, count: int) -> None:
    parts = [(f"{i}", run(path, shard=(i, count))) for i in range(1, count + 1)]
    whole = run(path)
    merged = merge(parts[::-1])
    assert_same(merged, whole, 1e-4)
    assert dict(merged.settings) == dict(whole.settings)


def test_more_shards_than_text(path: Path) -> None:
    with pytest.raises(InputError, match="shard=9/9: is empty, the text has 8 sequences"):
        run(path, sources=[PROMPTS, Source("two", SHORT.documents[:2])], shard=(9, 9))


def test_the_output_appears_when_it_is_complete(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "stats.gguf"
    broken = Run(open_model(path), [LONG], Settings(ctx=96), OPTIONS, Breaking(1))
    with pytest.raises(Interrupted):
        broken.run_into(output)
    assert not output.exists() and partial_path(output).exists()
    Run(open_model(path), [LONG], Settings(ctx=96), OPTIONS, silent).run_into(output)
    assert output.exists() and not partial_path(output).exists()
    assert Statistics.load(output).domains[0].tokens > 0
    with pytest.raises(OutputError, match="exists"):
        Run(open_model(path), [LONG], Settings(ctx=96), OPTIONS, silent).run_into(output)
    with pytest.raises(OutputError, match="is the source itself"):
        Run(open_model(path), [LONG], Settings(), OPTIONS, silent).run_into(path, force=True)


def test_settings_are_read_back_from_what_is_recorded() -> None:
    for how in (
        Settings(),
        Settings(ctx=64, max_tokens=5, generate=0, seed=3, temperature=0.25, top_p=1.0),
    ):
        assert Settings.from_recorded(how.recorded()) == how
    # Merged statistics of different runs name several values.
    assert Settings.from_recorded({"ctx": "64 | 96", "sampling": "a | b"}) == Settings()


# Whole processes: signals, kill -9, an abort of llama.cpp.


def arguments(path: Path, folder: Path) -> list[str]:
    text = folder / "text.txt"
    text.write_text(prose(5, 900))
    return [
        *("calibrate", str(path), "-o", str(folder / "s.gguf"), "--text", f"a={text}"),
        *("--ctx", "64", "--ubatch", "16", "--threads", "1", "--no-repack"),
    ]


def child(path: Path, folder: Path, then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*halting("ffn_moe_weighted-1", 6, then), *arguments(path, folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started these tests in the background has made them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(path: Path, folder: Path) -> None:
    """The same command once more, and compared with a run in a folder of its own."""
    partial = folder / "s.gguf.partial"
    assert Checkpoint.load(partial).done > 0
    fresh = folder / "fresh"
    fresh.mkdir()
    for where in (folder, fresh):
        subprocess.run([*COMMAND, *arguments(path, where)], check=True)
    assert not partial.exists()
    assert_same(Statistics.load(folder / "s.gguf"), Statistics.load(fresh / "s.gguf"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_signals(path: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = child(path, tmp_path, "pause")
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    if code == 130:
        assert "continues from there" in errors and "Traceback" not in errors
    assert not (tmp_path / "s.gguf").exists()
    finish(path, tmp_path)


def test_an_abort_of_llama_keeps_what_was_gathered(path: Path, tmp_path: Path) -> None:
    """A failed assertion of ggml, as a lost RPC server makes one."""
    process = child(path, tmp_path, "abort")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == LlamaError.exit_code, errors
    assert "llama.cpp stopped" in errors and "continues from there" in errors
    finish(path, tmp_path)


def test_the_built_in_prompts_of_the_trained_model(trained: Path, tmp_path: Path) -> None:
    """A few real prompts with answers, through the template in the file."""
    some = [Source(s.domain, s.documents[:2]) for s in builtin_texts()[:2]]
    found = run(trained, sources=some, generate=8, ctx=512)
    assert all((d.sums.tokens == d.tokens).all() for d in found.domains)
