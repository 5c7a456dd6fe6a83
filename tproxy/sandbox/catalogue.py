"""The models that the sandbox knows: what `/v1/models` lists, and which id an alias stands for.

Any id that begins with `claude-` is served, retired ones too; only these are listed. Window sizes are round figures
of the right order, not Anthropic's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Model(NamedTuple):
    """One row of the catalogue. Dates are ISO days; `retires` is None while no retirement is set."""

    id: str
    name: str
    created: str
    lifecycle: str = "active"
    retires: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def line(self) -> str | None:
        return next((line for line in ("haiku", "sonnet", "opus", "fable", "mythos") if line in self.id), None)

    @property
    def modern(self) -> bool:
        """Of 4.6 or newer: the large window, and ids without a date."""
        return not self.id[-8:].isdigit()


# Newest first, as the API lists them.
MODELS = (
    Model("claude-fable-5-2", "Claude Fable 5.2", "2026-11-09"),
    Model("claude-mythos-5-2", "Claude Mythos 5.2", "2026-11-09"),
    Model("claude-haiku-5-5", "Claude Haiku 5.5", "2026-10-07"),
    Model("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-09-28"),
    Model("claude-opus-5-5", "Claude Opus 5.5", "2026-09-22"),
    Model("claude-fable-5-1", "Claude Fable 5.1", "2026-09-01"),
    Model("claude-mythos-5-1", "Claude Mythos 5.1", "2026-09-01"),
    Model("claude-opus-5", "Claude Opus 5", "2026-07-24"),
    Model("claude-sonnet-5", "Claude Sonnet 5", "2026-06-30"),
    Model("claude-fable-5", "Claude Fable 5", "2026-06-09"),
    Model("claude-mythos-5", "Claude Mythos 5", "2026-06-09"),
    Model("claude-mythos-preview", "Claude Mythos Preview", "2026-04-07", "deprecated"),
    Model("claude-opus-4-8", "Claude Opus 4.8", "2026-05-28"),
    Model("claude-opus-4-7", "Claude Opus 4.7", "2026-04-16", aliases=("claude-opus-4-7-20260416",)),
    Model("claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17"),
    Model("claude-opus-4-6", "Claude Opus 4.6", "2026-02-05", aliases=("claude-opus-4-6-20260205",)),
    Model("claude-opus-4-5-20251101", "Claude Opus 4.5", "2025-11-01", aliases=("claude-opus-4-5",)),
    Model("claude-haiku-4-5-20251001", "Claude Haiku 4.5", "2025-10-01", aliases=("claude-haiku-4-5",)),
    Model(
        "claude-sonnet-4-5-20250929",
        "Claude Sonnet 4.5",
        "2025-09-29",
        "deprecated",
        "2026-11-30",
        ("claude-sonnet-4-5",),
    ),
    Model("claude-opus-4-1-20250805", "Claude Opus 4.1", "2025-08-05", "deprecated", aliases=("claude-opus-4-1",)),
    Model("claude-opus-4-20250514", "Claude Opus 4", "2025-05-14", "retired", "2026-06-15", ("claude-opus-4-0",)),
    Model("claude-sonnet-4-20250514", "Claude Sonnet 4", "2025-05-14", "retired", "2026-06-15", ("claude-sonnet-4-0",)),
    Model("claude-3-7-sonnet-20250219", "Claude Sonnet 3.7", "2025-02-19", "retired", "2026-02-19"),
    Model("claude-3-5-haiku-20241022", "Claude Haiku 3.5", "2024-10-22", "retired", "2026-02-19"),
    Model("claude-3-5-sonnet-20241022", "Claude Sonnet 3.5", "2024-10-22", "retired", "2025-10-28"),
    Model("claude-3-haiku-20240307", "Claude Haiku 3", "2024-03-07", "retired", "2026-04-19"),
    Model("claude-3-opus-20240229", "Claude Opus 3", "2024-02-29", "retired", "2026-01-05"),
)

_BY_ID = {model.id: model for model in MODELS} | {alias: model for model in MODELS for alias in model.aliases}


def find(id_: str) -> Model | None:
    """The row that an id or an alias names."""
    return _BY_ID.get(id_)


def resolved(id_: str) -> str:
    """The id that an answer names for the id asked for: an alias becomes what it stands for."""
    model = _BY_ID.get(id_)
    return id_ if model is None else model.id


def info(model: Model) -> dict[str, Any]:
    """A ModelInfo object (API reference, "Get a model")."""
    yes, no = {"supported": True}, {"supported": False}
    thinks = yes if model.created >= "2025-02" else no
    modern = yes if model.modern else no
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.name,
        "created_at": f"{model.created}T00:00:00Z",
        "lifecycle": model.lifecycle,
        "deprecated_at": None if model.lifecycle == "active" else "2026-04-14T00:00:00Z",
        "retires_at": None if model.retires is None else f"{model.retires}T00:00:00Z",
        "line": model.line,
        "max_input_tokens": 1_000_000 if model.modern else 200_000,
        "max_tokens": 128_000 if model.modern else 64_000,
        "capabilities": {
            "batch": yes,
            "citations": yes,
            "code_execution": modern,
            "context_management": {"supported": modern["supported"]},
            "effort": {
                "supported": modern["supported"],
                "low": modern,
                "medium": modern,
                "high": modern,
                "max": modern,
            },
            "image_input": yes,
            "pdf_input": yes,
            "server_tools": {"supported": True, "web_search": yes, "code_execution": modern},
            "structured_outputs": modern,
            "thinking": {
                "supported": thinks["supported"],
                "types": {"adaptive": modern, "between_tools": modern, "disabled": yes, "enabled": thinks},
            },
        },
    }
