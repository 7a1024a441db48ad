"""Perplexity and KL divergence, held against sums in float64 over logits gathered elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from ggprune.cli import cli
from ggprune.errors import InputError, LlamaError, MismatchError, OutputError, UnsupportedModelError
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.chunks import Chunk, chunks_of
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.logprobs import BaseLog, TokenScores, compare, record
from ggprune.evaluation.metrics import Metrics, mean_and_error
from ggprune.evaluation.verdict import verdict
from ggprune.gguf_file import write_files
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import plan_rewrite
from ggprune.text.builtin import CALIBRATION, HELD_OUT, SEARCH, builtin_texts
from ggprune.text.chat import ChatTemplate
from ggprune.text.documents import Document, Message, Source
from tests.support.evaluating import OPTIONS, TEXT, random_plan
from tests.support.llama_ctypes import loaded
from tests.support.tiny import write_tiny

TOKENS = 48
SOURCES = [Source("text", (Document(text=TEXT),))]
KEYS = [
    "tokens", "base", "candidate", "ppl_ratio", "ppl_ratio_se", "kld_mean", "kld_se",
    "kld_median", "kld_p95", "kld_p99", "kld_max", "top1_agreement", "overlap",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "base.gguf", "qwen3moe")


@pytest.fixture(scope="module")
def pruned(base: Path) -> Path:
    model = open_model(base)
    target = base.with_name("pruned.gguf")
    write_files(plan_rewrite(model, random_plan(model, 8), target).files, model.gguf)
    return target


def evaluator(path: Path, **options: object) -> Evaluator:
    return Evaluator(path, OPTIONS, SOURCES, **{"n_ctx": TOKENS, **options})


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


def by_hand(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities at the second half of every chunk, [n, vocab], and the text's tokens."""
    with LlamaModel(path, OPTIONS) as model:
        tokens = model.tokenize(TEXT)
    rows, targets = [], []
    with loaded(path) as model:
        for start in range(0, len(tokens) // TOKENS * TOKENS, TOKENS):
            chunk = [1, *tokens[start + 1 : start + TOKENS]]
            first = TOKENS // 2
            rows.append(log_softmax(model.run(chunk))[first : TOKENS - 1])
            targets += chunk[first + 1 :]
    return np.concatenate(rows), np.array(targets)


@pytest.mark.llama
def test_against_float64(base: Path, pruned: Path) -> None:
    log_p, targets = by_hand(base)
    log_q, _ = by_hand(pruned)
    p, q = np.exp(log_p), np.exp(log_q)
    nll_p, nll_q = (-x[np.arange(len(targets)), targets] for x in (log_p, log_q))
    kld = (p * (log_p - log_q) * (log_p > -16)).sum(axis=1)
    assert p[log_p <= -16].sum() < 1e-6, "nothing to speak of is left out"
    with evaluator(base) as measured:
        found = measured.measure_file(pruned).as_json()
    n = len(targets)
    assert found["tokens"] == n > 290
    assert found["base"]["ppl"] == pytest.approx(math.exp(nll_p.mean()), rel=1e-3)
    assert found["candidate"]["ppl"] == pytest.approx(math.exp(nll_q.mean()), rel=1e-3)
    assert found["candidate"]["ppl_se"] == pytest.approx(
        math.exp(nll_q.mean()) * nll_q.std(ddof=1) / math.sqrt(n), rel=1e-2
    )
    ratio = math.exp((nll_q - nll_p).mean())
    assert found["ppl_ratio"] == pytest.approx(ratio, rel=1e-3)
    # llama-perplexity: exp(…) · sqrt(var + var - 2 cov)
    errors = np.cov(nll_q, nll_p) / n
    paired = math.sqrt(errors[0, 0] + errors[1, 1] - 2 * errors[0, 1])
    assert found["ppl_ratio_se"] == pytest.approx(ratio * paired, rel=1e-2)
    assert found["kld_mean"] == pytest.approx(kld.mean(), rel=1e-2)
    assert found["kld_se"] == pytest.approx(kld.std() / math.sqrt(n - 1), rel=2e-2)
    for key, quantile in (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1)):
        assert found[f"kld_{key}"] == pytest.approx(np.quantile(kld, quantile), rel=2e-2)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert found["top1_agreement"] == pytest.approx(same, abs=2e-3 + 1 / n)
    assert found["overlap"] == pytest.approx(np.minimum(p, q).sum(axis=1).mean(), rel=1e-3)


def test_wide_distribution(tmp_path: Path) -> None:
    """Logits over a range of more than 16, and forbidden tokens: -inf."""
    draw = np.random.default_rng(0)
    tokens, n_vocab = 300, 1000
    a = (8 * draw.standard_normal((tokens, n_vocab))).astype(np.float32)
    b = (a + draw.standard_normal(a.shape)).astype(np.float32)
    a[:, 7] = b[:, 7] = b[:, 8] = -np.inf
    a[:, 8] = a.max(axis=1) - 30
    targets = a.argsort(axis=1)[:, -3].astype(np.int32)
    log_p, log_q = log_softmax(a), log_softmax(b)
    base = BaseLog.create(tmp_path / "x", {}, tokens, n_vocab)
    record(a, targets, base, 0)
    out = TokenScores.empty(tokens)
    compare(b, targets, base, np.arange(tokens), out)
    with np.errstate(invalid="ignore"):
        terms = np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0)
    # 16 bits over a range of 16: steps of 2.4e-4, rounding errors that do not add up.
    assert out.kld == pytest.approx(terms.sum(axis=1), abs=2e-4)
    rows = np.arange(tokens)
    assert base.nll == pytest.approx(-log_p[rows, targets], abs=1e-5)
    assert out.nll == pytest.approx(-log_q[rows, targets], abs=1e-5)
    assert out.overlap == pytest.approx(np.minimum(np.exp(log_p), np.exp(log_q)).sum(1), abs=2e-4)
    assert (out.same_top == (a.argmax(1) == b.argmax(1))).all()


@pytest.mark.llama
def test_base_is_computed_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(base)
    with evaluator(base, cache=tmp_path / "cache") as measured:
        assert not measured.base_is_known
        first = measured.measure_plan(random_plan(model, 8)).as_json()
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith("base-") and file.suffix == ".logprobs"
    monkeypatch.setattr("ggprune.evaluation.evaluator.record", None)  # Would raise if it were used.
    with evaluator(base, cache=tmp_path / "cache") as measured:
        assert measured.base_is_known
        assert measured.measure_plan(random_plan(model, 8)).as_json() == first
    with evaluator(base, cache=tmp_path / "cache", n_ctx=32) as measured:
        assert not measured.base_is_known, "other chunks, another file"
    other = write_tiny(tmp_path / "base.gguf", "qwen3moe", seed=1)
    with evaluator(other, cache=tmp_path / "cache") as measured:
        assert not measured.base_is_known, "another model of the same name"


@pytest.mark.llama
def test_damaged_cache_is_computed_again(base: Path, tmp_path: Path) -> None:
    with evaluator(base, cache=tmp_path) as measured:
        before = measured.measure_mask({0: [1]}).as_json()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with evaluator(base, cache=tmp_path) as measured:
        assert not measured.base_is_known
        assert measured.measure_mask({0: [1]}).as_json() == before


@pytest.mark.llama
def test_interrupted_base_leaves_no_file(base: Path, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with (
        evaluator(base, cache=tmp_path) as measured,
        pytest.raises(KeyboardInterrupt),
    ):
        measured.base(interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.llama
def test_no_room_for_the_cache(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with evaluator(base, cache=tmp_path / "file") as measured, pytest.raises(OutputError) as error:
        measured.base()
    assert "cache=FOLDER" in error.value.remedy


@pytest.mark.llama
def test_masks_on_some_chunks(base: Path) -> None:
    dropped = {0: [1, 2, 3, 4], 1: [5, 6]}
    with evaluator(base) as measured:
        whole = measured.measure_mask(dropped)
        order = [5, 0, 7]
        part = measured.score_mask(dropped, order)
        expected = np.concatenate([whole.scores.kld[measured.chunk_slice(i)] for i in order])
        assert part.kld == pytest.approx(expected, abs=1e-5)
        assert measured.score_mask({}, order).kld.max() < 1e-5


@pytest.mark.llama
def test_identity_changes_nothing(base: Path) -> None:
    with evaluator(base) as measured:
        model = measured.description
        plan = Plan(16, {layer: LayerPlan(tuple(range(16))) for layer in model.moe_layers})
        found = measured.measure_plan(plan)
    assert found.total.ppl_ratio == 1 and found.total.top1_agreement == 1
    assert abs(found.total.kld_mean) < 1e-6 and found.total.overlap > 0.9999
    assert not verdict(evaluation=found.as_json(), keep=16, retained={0: 1.0})


@pytest.mark.llama
def test_domains_add_up(base: Path) -> None:
    sources = [
        Source("one", (Document(text=TEXT),)),
        Source("two", (Document(text=TEXT[::-1]), Document(text=TEXT))),
    ]
    with Evaluator(base, OPTIONS, sources, n_ctx=TOKENS, max_tokens=240) as measured:
        assert [chunk.domain for chunk in measured.chunks] == ["one"] * 5 + ["two"] * 5
        found = measured.measure_mask({0: [1, 2, 3, 4, 5]}).as_json()
    one, two = found["domains"]["one"], found["domains"]["two"]
    assert list(found) == [*KEYS, "domains"] and list(one) == KEYS
    assert found["tokens"] == one["tokens"] + two["tokens"]
    assert found["kld_mean"] == pytest.approx((one["kld_mean"] + two["kld_mean"]) / 2)
    assert one["kld_mean"] != pytest.approx(two["kld_mean"], rel=1e-3)


@pytest.mark.llama
def test_only_answers_of_conversations_are_scored(base: Path) -> None:
    form = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = ChatTemplate(form, bos="<s>", eos="</s>", name="test")
    turns = [("user", "rain"), ("assistant", "sun"), ("user", "in"), ("assistant", "or not")]
    document = Document(messages=tuple(Message(*turn) for turn in turns))
    with LlamaModel(base, OPTIONS, vocab_only=True) as model:
        (chunk,) = chunks_of(model, template, [Source("x", (document,))], n_ctx=256)
        said = "".join(model.text([token]) for token in chunk.targets)
        assert model.text(chunk.tokens.tolist()).count("<s>") == 1
        (cut,) = chunks_of(model, template, [Source("x", (document,))], n_ctx=40)
    assert said == "sun</s>or not</s>"
    assert len(cut.tokens) == 40 and cut.scored.max() < 40


@pytest.mark.llama
def test_what_does_not_fit_into_the_context_is_named(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")

    def told(prompt: int, answer: int) -> Document:
        return Document(
            messages=(Message("user", "a" * prompt), Message("assistant", "b" * answer))
        )

    def cut(*documents: Document, more: Sequence[Source] = ()) -> list[Chunk]:
        with LlamaModel(base, OPTIONS, vocab_only=True) as model:
            return chunks_of(model, None, [Source("x", documents), *more], n_ctx=64)

    more = [Source("y", (told(9, 99),)), Source("z", (told(9, 9),))]
    assert len(cut(told(9, 9), told(99, 9), told(9, 99), more=more)) == 4
    assert caplog.messages == [
        "conversations longer than ctx=64: left out, as the answer begins later: x 1 of 3; "
        "cut there: x 1 of 3, y 1 of 1"
    ]
    with pytest.raises(InputError, match=r"begins within 64 tokens, .* after 1") as e:
        cut(told(120, 9), told(199, 9))
    assert "ctx well above 1" in e.value.remedy and "smaller" not in e.value.remedy
    with pytest.raises(InputError, match="conversations, but no answers"):
        cut(Document(messages=(Message("user", "a"),)))


@pytest.mark.llama
def test_conversations_share_a_pass_without_seeing_each_other(base: Path) -> None:
    documents = [
        Document(messages=(Message("user", TEXT[i : i + 20]), Message("assistant", TEXT[: 30 + i])))
        for i in range(0, 40, 8)
    ]
    both = [Source("x", tuple(documents))]
    # A cache in F16 rounds, and so does flash attention on a CPU.
    exact = replace(OPTIONS, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
    with Evaluator(base, exact, both, n_ctx=256) as measured:
        together = np.array(measured.base().nll)
    alone = []
    for document in documents:
        with Evaluator(base, exact, [Source("x", (document,))], n_ctx=256) as measured:
            alone.append(np.array(measured.base().nll))
    assert together == pytest.approx(np.concatenate(alone), abs=1e-4)


@pytest.mark.llama
def test_short_chunks_share_a_pass(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that experts see batches of 512 tokens; numbers are those of test_against_float64."""
    passes = []
    decode = LlamaContext.decode

    def counted(context: LlamaContext, parts: Sequence[Tokens]) -> None:
        passes.append(sum(part.start == 0 for part in parts))
        decode(context, parts)

    monkeypatch.setattr(LlamaContext, "decode", counted)
    with evaluator(base) as measured:
        measured.base()
        chunks = len(measured.chunks)
    # Ten chunks of 48 in 512 tokens.
    assert chunks > 10 and passes == [10] * (chunks // 10) + [chunks % 10]


def test_held_out_text_is_not_calibration_text() -> None:
    def contents(name: str) -> set[str]:
        return {
            message.content
            for source in builtin_texts(name)
            for document in source.documents
            for message in document.messages
        }

    for name in (CALIBRATION, SEARCH):
        assert not contents(HELD_OUT) & contents(name)
        hashes = [{s.sha256 for s in builtin_texts(n)} for n in (HELD_OUT, name)]
        assert len(hashes[0]) == 8 and not hashes[0] & hashes[1]


@pytest.mark.llama
def test_text_shorter_than_a_chunk(base: Path) -> None:
    with pytest.raises(InputError, match="'text' has 193 tokens, less than one chunk of 200"):
        Evaluator(base, OPTIONS, [Source("text", (Document(text=TEXT[:200]),))], n_ctx=200)


@pytest.mark.llama
def test_plan_for_another_model(base: Path, tmp_path: Path) -> None:
    other = open_model(write_tiny(tmp_path / "o.gguf", "qwen3moe", seed=1))
    plan = random_plan(other, 8).for_model(other)
    with evaluator(base) as measured, pytest.raises(MismatchError, match="router"):
        measured.measure_plan(plan)


@pytest.mark.llama
def test_other_vocabulary(base: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "o.gguf", "qwen3moe")
    data = other.read_bytes()
    assert data.count(b"<extra_280>") == 1
    other.write_bytes(data.replace(b"<extra_280>", b"<other_280>"))
    with evaluator(base) as measured, pytest.raises(MismatchError, match="vocabular"):
        measured.measure_file(other)


@pytest.mark.llama
@pytest.mark.parametrize("side", ["base", "candidate"])
def test_nan(base: Path, tmp_path: Path, side: str) -> None:
    damaged = write_tiny(tmp_path / "damaged.gguf", "qwen3moe")
    reader = gguf.GGUFReader(damaged, "r+")
    tensor = next(t for t in reader.tensors if t.name == "output_norm.weight")
    tensor.data[3] = np.nan
    tensor.data.flush()
    with (
        evaluator(damaged if side == "base" else base) as measured,
        pytest.raises(LlamaError, match="not finite"),
    ):
        measured.measure_file(damaged)


def test_mean_and_error() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean, error = mean_and_error(values)
    assert mean == 4 and error == pytest.approx(values.std(ddof=1) / 2)


def test_candidate_knows_its_calibration(base: Path, pruned: Path, tmp_path: Path) -> None:
    model = open_model(base)
    seen = Source("a", (Document(text="seen"),))
    record = {"calibration": {"domains": {"a": {"tokens": 1, "sha256": f"0+{seen.sha256}"}}}}
    plan = random_plan(model, 8)
    stated = {"calibration": {"a": f"0+{seen.sha256}"}}
    Plan(8, plan.layers, settings=stated).save(tmp_path / "plan.json")
    assert seen.sha256 in Candidate.load(tmp_path / "plan.json").calibration
    beside = pruned.with_name("pruned.expert_drop_metadata.json")
    beside.write_text(json.dumps({**record, "layers": {"0": {"retained": 0.5}}}))
    candidate = Candidate.load(pruned)
    assert candidate.calibration == {"0", seen.sha256}
    assert candidate.keep == 8 and candidate.retained == {0: 0.5}
    beside.unlink()
    assert Candidate.load(pruned).calibration == frozenset()


@pytest.mark.llama
def test_command(base: Path, pruned: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    common = ["--text", f"x={text}", "--ctx", "48", "-t", "1", "--cache", str(tmp_path / "cache")]
    plan = tmp_path / "plan.json"
    random_plan(open_model(base), 8).save(plan)
    run = CliRunner().invoke(cli, ["evaluate", str(base), str(plan), "--json", *common])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert list(found) == [*KEYS, "domains"] and found["kld_mean"] > 0.01
    run = CliRunner().invoke(cli, ["evaluate", str(base), str(pruned), *common])
    assert run.exit_code == 0, run.output
    assert f"{found['ppl_ratio']:.4f}" in run.stdout and len(run.stdout.splitlines()) < 25


@pytest.mark.llama
def test_embedding_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "nomic-bert-moe")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    common = ["--text", f"x={text}", "--ctx", "48", "-t", "1"]
    run = CliRunner().invoke(cli, ["evaluate", str(path), str(path), *common])
    assert isinstance(run.exception, UnsupportedModelError)


def test_metrics_of_no_difference() -> None:
    nll = np.linspace(0, 4, 50)
    scores = TokenScores(nll, np.zeros(50), np.ones(50, bool), np.ones(50))
    found = Metrics.of(nll, scores)
    assert found.ppl_ratio == 1 and found.ppl_ratio_se == 0


@pytest.mark.llama
def test_a_part_of_a_text_is_spread_over_it(base: Path) -> None:
    numbers = " ".join(f"{number:04}" for number in range(1000))
    sources = [Source("x", (Document(text=numbers),))]
    with LlamaModel(base, OPTIONS, vocab_only=True) as model:

        def places(spread: bool) -> list[int]:
            some = chunks_of(model, None, sources, n_ctx=64, max_tokens=640, spread=spread)
            return [every.index(chunk.tokens.tolist()) for chunk in some]

        every = [chunk.tokens.tolist() for chunk in chunks_of(model, None, sources, n_ctx=64)]
        assert len(every) > 40
        assert places(spread=False) == list(range(10))
        step = len(every) // 10
        assert places(spread=True) == list(range(0, 10 * step, step))
