"""The evaluation callback: lets observers see, and change, nodes of a running graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from ggprune.interrupts import interrupts
from ggprune.llama.tensor import TensorView, node_name, tensor_name


class Observer(Protocol):
    """Something that watches graph nodes."""

    def wants(self, name: str) -> bool:
        """Whether the node of this name is to be received; asked once a name."""

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Look at a computed node, or change it. False: nothing after it needs to be computed."""


@runtime_checkable
class NodeObserver(Observer, Protocol):
    """Something that chooses nodes by what they compute, since many have no name of their own."""

    def wants_node(self, tensor: TensorView) -> bool:
        """Whether this node is to be received; asked for every node, before and after computing.

        Its data is not there yet: only operation, shape and sources may be looked at.
        """


@runtime_checkable
class ResumableObserver(Observer, Protocol):
    """Something that can go on from where an interrupted run was."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copy what was gathered, as arrays by short names."""

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from there."""


class Dispatcher:
    """The function llama.cpp calls for every node, twice for those that somebody wants.

    An exception must not leave it: ctypes would print it and cancel the graph, and the run would
    go on with garbage. So it is kept, the graph is cut short, and :meth:`raise_pending` is called
    after the decode.

    Args:
        observers: asked in order; a node is received by each one that wants it.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        # What changes a node comes before what reads it.
        self._observers = tuple(
            sorted(observers, key=lambda observer: not getattr(observer, "alters", False))
        )
        self._choosing = tuple(each for each in observers if isinstance(each, NodeObserver))
        # Names repeat in every graph, so a decision is one dictionary look-up from the second
        # time on. This side runs thousands of times a batch.
        self._wanted: dict[bytes, tuple[Observer, ...]] = {}
        self._first: bytes | None = None
        # Whether asking takes more than that look-up.
        self._special = bool(self._choosing)
        self._stopped = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Call before each decode."""
        self._stopped, self._special = False, bool(self._choosing)
        self._error = None

    def raise_pending(self) -> None:
        """Raise what an observer raised during the decode."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __call__(self, address: int, ask: bool, _: Any) -> bool:
        """Answer llama.cpp: ``ask`` is "do you want this node?", otherwise it is computed."""
        try:
            raw = tensor_name(address)
            if not ask:
                # On a device nobody else ends a batch before it is through.
                if interrupts.arrived:
                    self._stop()
                return self._receive(raw, address)
            wanted = self._wanted.get(raw)
            if wanted is None or self._special:
                return self._ask(raw, address)
            return bool(wanted)
        except BaseException as error:
            self._error = error
            self._stop()
            return False

    def _stop(self) -> None:
        self._stopped = self._special = True

    def _ask(self, raw: bytes, address: int) -> bool:
        if self._first is None:
            self._first = raw
        if self._stopped:
            # The split was ended, but llama.cpp goes on with the next one: end that after its
            # first node. A graph of the next ubatch starts anew.
            if raw != self._first or self._error is not None:
                return True
            self._stopped, self._special = False, bool(self._choosing)
        wanted = self._wanted.get(raw)
        if wanted is None:
            wanted = self._wanted[raw] = self._find(raw)
        return bool(wanted) or bool(self._choosers(address))

    def _choosers(self, address: int) -> list[NodeObserver]:
        if not self._choosing:
            return []
        view = TensorView(address)
        return [observer for observer in self._choosing if observer.wants_node(view)]

    def _find(self, raw: bytes) -> tuple[Observer, ...]:
        name = node_name(raw)
        return tuple(observer for observer in self._observers if observer.wants(name))

    def _receive(self, raw: bytes, address: int) -> bool:
        if self._stopped:
            return False
        name, view = node_name(raw), TensorView(address)
        receivers = (*self._wanted.get(raw, ()), *self._choosers(address))
        going_on = [observer.receive(name, view) for observer in receivers]
        if not any(going_on):
            self._stop()
        return not self._stopped


def layer_node(name: str) -> tuple[str, int] | None:
    """Split ``ffn_moe_topk-12`` into its parts; None for views and nodes of no layer."""
    base, dash, layer = name.rpartition("-")
    return (base, int(layer)) if dash and layer.isascii() and layer.isdigit() else None
