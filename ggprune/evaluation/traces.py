"""A model's own good answers: it answers tasks, and those that pass their check are kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ggprune.calibration.generate import generate
from ggprune.errors import InputError, Interrupted, MismatchError
from ggprune.evaluation.evaluator import check_predicts
from ggprune.evaluation.probe import measure, own_sampling
from ggprune.gguf_file import write_text
from ggprune.interrupts import interrupts
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaModel
from ggprune.model import Model
from ggprune.system import cores
from ggprune.text import chat
from ggprune.text.answers import final_answer, opened_thinking
from ggprune.text.tasks import Command, Task
from ggprune.types import Progress
from ggprune.util import check_shape, read_json
from ggprune.version import VERSION

VERDICTS = PASSED, WRONG, UNFINISHED, TIMED_OUT, TOO_LONG = (
    *("passed", "wrong", "unfinished"),
    *("timed out", "too long"),
)
#: Prompts that are generated together are so many times those answered at the same time, so that
#: a short answer makes room for the next prompt.
_ROUNDS = 2
#: Tokens at the end of a prompt in which it may begin the thinking.
_TAIL = 64


def gather(
    model: Model,
    tasks: Sequence[Task],
    options: RunOptions,
    *,
    command: Command | None,
    max_tokens: int,
    parallel: int,
    seed: int,
    partial: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Let a model answer tasks by its own sampling settings, and keep the answers that pass.

    Args:
        model: any that predicts tokens.
        tasks: with their checks.
        options: how llama.cpp runs it.
        command: what checks the answers, where rows do not.
        max_tokens: of an answer; one that does not end by then has not passed.
        parallel: tasks answered at the same time.
        seed: for the answers; each is drawn from a stream of its own.
        partial: keeps what is answered so far, and is gone on from; None keeps nothing.
        progress: shows how far it is.

    Returns:
        ``classes``: how many tasks of each class there are, and by verdict; ``tokens`` that were
        generated; ``traces``: rows that ``--text`` reads, in the order of the tasks.

    Raises:
        UnsupportedModelError: an embedding model.
        InputError: a template fails, a check cannot be run, or no answer has passed.
        MismatchError: ``partial`` is of another model, other tasks or settings.
        Interrupted: Ctrl-C; what is done is in ``partial``.
    """
    check_predicts(model)
    sampling = replace(own_sampling(model.gguf), seed=seed)
    run = {
        "model": model.gguf.path.name,
        "model_bytes": model.gguf.size,
        "tasks": hashlib.sha256(
            repr([(task.domain, task.row) for task in tasks]).encode()
        ).hexdigest(),
        "check": repr(command),
        "max_tokens": max_tokens,
        "parallel": parallel,
        "sampling": asdict(sampling),
        "ggprune": VERSION,
    }
    answers = _resumed(partial, run)
    size, most, done = _ROUNDS * parallel, len(tasks) * max_tokens, len(answers) * max_tokens
    try:
        with (
            progress(most, "answering at most", "tok", initial=done) as advance,
            LlamaModel(model.gguf.path, options) as llama,
        ):
            template = chat.template_of(llama, model.gguf.get("tokenizer.chat_template"))
            for at in range(len(answers), len(tasks), size):
                part = tasks[at : at + size]
                prompts = [chat.tokenize(llama, template, task.document) for task in part]
                answers += _answers(
                    llama,
                    part,
                    prompts,
                    most=(model.trained_context or sys.maxsize) - max_tokens,
                    max_tokens=max_tokens,
                    parallel=parallel,
                    sampling=sampling,
                    streams=range(at, at + size),
                    advance=advance,
                )
                with interrupts:
                    if partial is not None:
                        kept = {"run": run, "answers": answers}
                        write_text(partial, json.dumps(kept, ensure_ascii=False))
    except KeyboardInterrupt:
        where = f"{len(answers):,} of {len(tasks):,} answers are kept in {partial}"
        raise Interrupted(
            "interrupted",
            remedy=f"{where}; the same command continues." if partial and answers else "",
        ) from None
    if partial is not None and not any(answer["verdict"] == PASSED for answer in answers):
        partial.unlink(missing_ok=True)  # Other tasks are what helps, and they are another run.
    return _summary(tasks, answers)


def _answers(
    llama: LlamaModel,
    tasks: Sequence[Task],
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    streams: Sequence[int],
    **how: Any,
) -> list[dict[str, Any]]:
    """Answer tasks whose prompts have at most so many tokens; each answer with its verdict."""
    found = [{"verdict": TOO_LONG, "tokens": 0, "text": ""} for _ in tasks]
    fits = [at for at, prompt in enumerate(prompts) if len(prompt) <= most]
    asked, drawn = [prompts[at] for at in fits], [streams[at] for at in fits]
    for at, ids in zip(fits, generate(llama, asked, streams=drawn, **how), strict=True):
        answer = measure(llama, ids)
        text = opened_thinking(llama.text(prompts[at][-_TAIL:])) + answer.text
        verdict = "" if answer.ended else UNFINISHED
        found[at] = {"verdict": verdict, "tokens": len(ids), "text": text}
    checked = [at for at in fits if not found[at]["verdict"]]
    # Checks may be other people's programs: many at a time.
    with ThreadPoolExecutor(cores()) as pool:
        texts = [str(found[at]["text"]) for at in checked]
        for at, verdict in zip(
            checked, pool.map(_verdict, [tasks[at] for at in checked], texts), strict=True
        ):
            found[at]["verdict"] = verdict
    return found


def _verdict(task: Task, text: str) -> str:
    try:
        return PASSED if task.check(final_answer(text)) else WRONG
    except TimeoutError:
        return TIMED_OUT


def _resumed(partial: Path | None, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    if partial is None or not partial.exists():
        return []
    kept = read_json(partial, "what an interrupted run left")
    answer = {"verdict": str, "tokens": int, "text": str}
    check_shape(kept, {"run": {str: Any}, "answers": [answer]}, str(partial))
    for key, value in run.items():
        if kept["run"].get(key) != value:
            raise MismatchError(
                f"{partial}: was made with other {key}",
                remedy=f"Use the same options to continue, or remove {partial} to start again.",
            )
    return list(kept["answers"])


def _summary(tasks: Sequence[Task], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = list(zip(tasks, answers, strict=True))
    traces = []
    for task, answer in pairs:
        if answer["verdict"] == PASSED:
            turns = [
                {"role": turn.role, "content": turn.content} for turn in task.document.messages
            ]
            turns.append({"role": "assistant", "content": answer["text"]})
            tools = {"tools": json.loads(task.document.tools)} if task.document.tools else {}
            traces.append({"domain": task.domain, **tools, "messages": turns})
    if not traces:
        counts = Counter(str(answer["verdict"]) for answer in answers)
        listed = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
        first = next((str(each["text"]) for each in answers if each["text"]), "")
        raise InputError(
            f"none of {len(tasks):,} answers passed: {listed}"
            + (f"; the first: {first[:300]!r}" if first else ""),
            remedy="Give tasks that the model can do, more max_tokens, or another check.",
        )
    classes = {}
    for name in dict.fromkeys(task.domain for task in tasks):
        counts = Counter(str(answer["verdict"]) for task, answer in pairs if task.domain == name)
        classes[name] = {"tasks": counts.total(), **{each: counts[each] for each in VERDICTS}}
    tokens = sum(int(answer["tokens"]) for answer in answers)
    return {"classes": classes, "tokens": tokens, "traces": traces}
