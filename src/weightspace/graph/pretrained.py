"""Special cases of Hugging Face transformers: outputs beside the logits, and mixtures of experts.

Nothing here imports transformers; a model is recognised by its methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import fx, nn

__all__ = ["answer", "answer_only", "beside", "keeps_cache", "plain_experts"]


_INSIDE = ("state", "past_key_values", "cache", "mems", "attentions")


def beside(names: Collection[str]) -> set[str]:
    """The names of internal values among a model's outputs: hidden states, caches, attention maps.

    None where there are no logits: the hidden states are then the output.
    """
    return {name for name in names if any(part in name for part in _INSIDE)} if "logits" in names else set()


def answer(output: Any) -> Any:
    """What a model returned, without the internal values that `beside` names."""
    if not isinstance(output, Mapping):
        return output
    inside = beside([str(key) for key in output])
    return {key: value for key, value in output.items() if str(key) not in inside}


def answer_only(exported: Any) -> dict[str, list[fx.Node]]:
    """Remove the internal values that `beside` names from a graph's outputs; returns name -> removed nodes."""
    spec = exported.call_spec.out_spec
    node = next(n for n in exported.graph_module.graph.nodes if n.op == "output")
    outputs = list(node.args[0])[-spec.num_leaves :] if spec.num_leaves else []  # written tensors come before
    names = spec.context if isinstance(spec.type, type) and issubclass(spec.type, Mapping) else []
    inside = beside([str(name) for name in names])
    kept: list[Any] = []
    taken: dict[str, list[fx.Node]] = {}
    for name, child in zip(names or [""], spec.children() if names else [spec], strict=True):
        piece, outputs = outputs[: child.num_leaves], outputs[child.num_leaves :]
        if name in inside:
            taken[str(name)] = [n for n in piece if isinstance(n, fx.Node)]
        else:
            kept += piece
    node.args = (tuple(kept),)
    return taken


def keeps_cache(module: nn.Module) -> bool:
    """Whether a model is configured to return the keys and values that it computed, for the next tokens."""
    return any(getattr(getattr(part, "config", None), "use_cache", False) is True for part in module.modules())


@contextlib.contextmanager
def plain_experts(module: nn.Module) -> Iterator[None]:
    """A context in which mixtures of experts use plain batched products over the chosen experts.

    Their other implementations have no float64, or loops that depend on the data.
    """
    models: list[Any] = [m for m in module.modules() if _mixes(m)]
    held = [(m, m.get_experts_implementation()) for m in models]
    try:
        for model, _ in held:
            model.set_experts_implementation("batched_mm")
        yield
    finally:
        for model, before in held:
            model.set_experts_implementation(before)


def _mixes(module: Any) -> bool:
    able = getattr(type(module), "_can_set_experts_implementation", None)
    return able is not None and hasattr(module, "get_experts_implementation") and bool(able())
