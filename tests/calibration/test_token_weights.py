"""Weights of tokens: by hand, as repetition, and in whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ggprune.calibration.merge import merge
from ggprune.calibration.observers import RoutingObserver, RoutingRecorder
from ggprune.calibration.routing import Shares
from ggprune.calibration.run import Run, replay
from ggprune.calibration.sequences import TokenSequence
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.calibration.weights import AROUND, of_answer, weights_of
from ggprune.choosing.cover import cover_scores, losses
from ggprune.cli.stats import command as stats
from ggprune.errors import InputError, Interrupted, MismatchError
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel
from ggprune.model import open_model
from ggprune.model.architectures import ARCHITECTURES
from ggprune.text.chat import ChatTemplate
from ggprune.text.documents import Document, Message, Source
from tests.support.calibrating import EXACT, Breaking, assert_same
from tests.support.tiny import write_tiny

OPTIONS = RunOptions(threads=1, ubatch=32, **EXACT)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = Source(
    "chat",
    tuple(
        Document(messages=(Message("user", "rain " * n), Message("assistant", "and sun " * n)))
        for n in range(1, 6)
    ),
)
PLAIN = Source("plain", (Document(text="the tired road rests there " * 3),))


class Node:
    """What the observer reads of a tensor."""

    def __init__(self, values: object, source: object = None) -> None:
        self.values, self.operand = np.array(values), source

    def array(self) -> np.ndarray:
        return self.values[None, None]

    def source(self, _: int) -> Node:
        gates = Node(self.operand)
        gates.values = np.array(self.operand, np.float32)[None, :, :, None]
        gates.array = lambda: gates.values  # type: ignore[method-assign]
        return gates


def test_sums_of_two_tokens_by_hand() -> None:
    observer = RoutingObserver(
        ARCHITECTURES["qwen3moe"],
        [0],
        3,
        cut=False,
        norms=lambda tensor: tensor.values.astype(np.float64),  # type: ignore[arg-type]
        every=1,
        weighted=True,
    )
    observer.weigh(np.array([1, 0.25, 0]))
    # g·f is 3 and 4 for the first token, 8 and 2 for the second, 9 and 9 for one that counts 0.
    for chosen, added, gates in (
        ([[0, 1]], [[3, 4]], [[0.5, 0.5]]),
        ([[0, 2], [1, 2]], [[8, 2], [9, 9]], [[0.8, 0.2], [0.1, 0.1]]),
    ):
        observer.receive("ffn_moe_topk-0", Node(np.array(chosen, np.int32)))  # type: ignore[arg-type]
        observer.receive("ffn_moe_weighted-0", Node(added, gates))  # type: ignore[arg-type]
    shares = observer.shares()
    sums = observer.take()
    assert sums.tokens.tolist() == [3]
    assert sums.count.tolist() == [[1.25, 1, 0.25]]
    assert sums.gate_sum[0] == pytest.approx([0.5 + 0.2, 0.5, 0.05])
    assert sums.norm_sum[0] == pytest.approx([6 + 2.5, 8, 2.5])
    assert sums.norm_sq_sum[0] == pytest.approx([36 + 25, 64, 25])
    assert sums.contribution_sum[0] == pytest.approx([3 + 2, 4, 0.5])
    assert sums.norm_max[0] == pytest.approx([10, 8, 10])
    assert shares is not None and shares.weights is not None
    assert shares.weights.tolist() == [1, 0.25]
    assert shares.sums(3)[0] == pytest.approx(
        [9 / 25 + 0.25 * 64 / 68, 16 / 25, 0.25 * 4 / 68], abs=1e-3
    )


def test_a_weight_of_three_is_the_token_three_times() -> None:
    random = np.random.default_rng(3)
    tokens, layers, experts, used = 40, 3, 8, 2
    chosen = np.array(
        [[random.permutation(experts)[:used] for _ in range(layers)] for _ in range(tokens)]
    )
    plain = Shares.of(chosen, random.uniform(0.1, 1, chosen.shape))
    weights = random.integers(1, 4, tokens)
    weighted = replace(plain, weights=weights.astype(np.float32))
    repeated = plain.at(np.repeat(np.arange(tokens), weights))
    pairs = [(weighted, repeated)]
    pairs.append((losses(weighted, normed=False), losses(repeated, normed=False)))
    assert not np.allclose(cover_scores(plain, 4, experts), cover_scores(repeated, 4, experts))
    for one, other in pairs:
        np.testing.assert_allclose(one.sums(experts), other.sums(experts), rtol=1e-3)
        np.testing.assert_allclose(
            cover_scores(one, 4, experts), cover_scores(other, 4, experts), rtol=2e-3
        )
    both = Shares.joined([plain, weighted]).weight
    assert both.tolist() == [1] * tokens + weights.tolist()


@pytest.mark.parametrize(
    ("pieces", "weights", "wanted"),
    [
        (["so", "</think>", "4"], {"answer": 2}, [2, 2, 2]),
        (["a"] * 20 + ["</th", "ink>\n\n"] + ["b"] * 20, {"thinking-end": 3},
         [1] * (20 - AROUND) + [3] * (2 * AROUND + 2) + [1] * (20 - AROUND)),
        (["x<tool", "_call>", "{}", "</tool_call", ">", " y"], {"tools": 5, "answer": 2},
         [5, 5, 5, 5, 5, 2]),
        (["Hi\n", '{"name": "f", ', '"arguments": {}}', "\n", "ok"], {"tools": 4},
         [1, 4, 4, 1, 1]),
        (["<｜tool▁calls▁begin｜>", "f", "<｜tool▁calls▁end｜>", "z"], {"tools": 0},  # noqa: RUF001
         [0, 0, 0, 1]),
        (["</think>", "<tool_call>", "</tool_call>"], {"tools": 4, "thinking-end": 2}, [2, 4, 4]),
    ],
)  # fmt: skip
def test_parts_of_an_answer(
    pieces: list[str], weights: dict[str, float], wanted: list[float]
) -> None:
    assert of_answer([piece.encode() for piece in pieces], weights).tolist() == wanted


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf", "qwen3moe")


@pytest.mark.llama
def test_answers_of_a_conversation(path: Path) -> None:
    """Every turn of the assistant, with what ends it; the text of all pieces says where."""
    template = ChatTemplate(CHATML, bos="", eos="", name="t")
    turns = [("user", "sun?"), ("assistant", "yes"), ("user", "yes?"), ("assistant", "no rain")]
    document = Document(messages=tuple(Message(*turn) for turn in turns))
    with LlamaModel(path, OPTIONS, vocab_only=True) as llama:
        tokens = np.array(llama.tokenize(template.render(document.messages)), np.int32)
        given = {"prompt": 0.0}
        weights = weights_of(llama, template, document, tokens, given)
        assert weights is not None and weights.dtype == np.float64
        said = llama.text(tokens[weights == 1].tolist())
        assert weights_of(llama, template, document, tokens, None) is None
        plain = weights_of(llama, None, Document(text="a"), tokens, given)
    assert said == "yes<|im_end|>\nno rain<|im_end|>\n"
    assert plain is not None and plain.tolist() == [1] * len(tokens)


def run(path: Path, partial: Path | None = None, **more: object) -> Statistics:
    settings = {name: more.pop(name) for name in list(more) if name in Settings.__slots__}
    sources = more.pop("sources", (CHAT, PLAIN))
    how = Settings(**{"ctx": 96, "generate": 0, **settings})  # type: ignore[arg-type]
    return Run(open_model(path), sources, how, OPTIONS, **more).run(partial)  # type: ignore[arg-type]


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["qwen3moe", "gemma4", "qwen3next", "jamba", "deepseek4"])
def test_a_run_is_the_sum_over_its_tokens(architecture: str, tmp_path: Path) -> None:
    """Tokens recorded one sequence at a time; some memories reorder those of several."""
    path = write_tiny(tmp_path / "m.gguf", architecture)
    found = run(path, weight={"prompt": 0.5, "answer": 3})
    model = open_model(path)
    recorder = RoutingRecorder(model.architecture, model.moe_layers)
    for domain, source in zip(found.domains, (CHAT, PLAIN), strict=True):
        with (
            LlamaModel(path, OPTIONS) as llama,
            LlamaContext(llama, n_ctx=96, observers=[recorder]) as context,
        ):
            weights = []
            for document in source.documents:
                # The tiny models have no chat template: contents with an empty line between.
                contents = [message.content for message in document.messages]
                tokens = llama.tokenize("\n\n".join(contents) or document.text)
                replay(context, [TokenSequence(0, np.array(tokens, np.int32))])
                asked = len(llama.tokenize(contents[0])) if contents else 0
                weights += [0.5] * asked + [3.0 if contents else 1.0] * (len(tokens) - asked)
        chosen, added = recorder.take()
        for row in range(len(model.moe_layers)):
            each = np.repeat(weights, chosen.shape[2])
            flat, size = chosen[:, row].ravel(), model.experts
            np.testing.assert_allclose(domain.sums.count[row], np.bincount(flat, each, size))
            wanted = np.bincount(flat, each * added[:, row].ravel(), size)
            np.testing.assert_allclose(domain.sums.contribution_sum[row], wanted, rtol=1e-4)


@pytest.mark.llama
def test_weights_of_one_change_no_byte(path: Path, tmp_path: Path) -> None:
    for name, weight in (("a", {}), ("b", {"prompt": 1, "tools": 1.0})):
        run(path, weight=weight).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.llama
def test_recorded_shown_and_merged(path: Path, tmp_path: Path) -> None:
    weight = {"prompt": 0.25, "answer": 2, "tools": 0.1234567}
    whole = run(path, weight=weight)
    assert whole.settings["weight"] == "answer=2,prompt=0.25,tools=0.1234567"
    assert dict(Settings.from_recorded(whole.settings).weight) == weight
    whole.save(tmp_path / "s.gguf")
    again = Statistics.load(tmp_path / "s.gguf")
    assert_same(again, whole)
    assert again.shares is not None and whole.shares is not None
    assert again.shares.weight.tolist() == whole.shares.weight.tolist()
    assert whole.total.count.dtype == np.float64
    shown = CliRunner().invoke(stats, [str(tmp_path / "s.gguf")]).output
    assert "answer=2,prompt=0.25,tools=0.1234567" in shown
    parts = [(str(n), run(path, weight=weight, shard=(n, 2))) for n in (1, 2)]
    merged = merge(parts)
    assert_same(merged, whole, 1e-6)
    assert merged.shares is not None and len(merged.shares) == len(whole.shares)
    other = run(path, sources=(replace(PLAIN, domain="more", documents=PLAIN.documents * 2),))
    said = r"weight answer=2,prompt=0\.25,tools=0\.1234567 and not set"
    with pytest.raises(MismatchError, match=said):
        merge([("weighted", whole), ("plain", other)])


@pytest.mark.llama
def test_interrupted_and_continued(path: Path, tmp_path: Path) -> None:
    asked = Source("asked", tuple(Document(messages=d.messages[:1]) for d in CHAT.documents))
    template = pytest.MonkeyPatch()
    template.setattr(
        "ggprune.calibration.run.chat.template_of",
        lambda *_: ChatTemplate(CHATML, bos="", eos="", name="t"),
    )
    how = {"weight": {"prompt": 0, "answer": 2}, "generate": 8, "sources": (asked, CHAT)}
    with template.context():
        whole = run(path, **how, parallel=2)
        partial = tmp_path / "s.partial"
        for after in (20, 1, 2):
            with pytest.raises(Interrupted):
                run(path, partial, **how, parallel=2, progress=Breaking(after))
        again = run(path, partial, **how, parallel=2)
    template.undo()
    assert_same(again, whole)
    # Prompts count nothing, answers 2 a token.
    answers = whole.domains[0].sums.count.sum(axis=1) / open_model(path).experts_used / 2
    assert (answers == answers[0]).all() and 0 < answers[0] <= 8 * len(asked.documents)


@pytest.mark.llama
def test_text_without_any_weight(path: Path) -> None:
    with pytest.raises(InputError, match="'chat': no token of it has a weight above 0"):
        run(path, weight={"prompt": 0, "answer": 0})


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ({"question": 1}, "weight=question=1: expected prompt, answer"),
        ({"answer": -1}, "weight=answer=-1: expected a number that is not negative"),
        ({"answer": float("nan")}, "expected a number that is not negative"),
        ("answer=2", "weight='answer=2': expected pairs"),
    ],
)
def test_weights_that_are_none(weight: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(weight=weight)  # type: ignore[arg-type]
