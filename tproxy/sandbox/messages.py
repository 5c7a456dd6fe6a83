"""An answer to a Messages request: the message, its usage as it is shown, and its usage as it is billed.

The two differ. A refusal before any output shows tokens and is billed nothing; with a fallback, the attempt that
declined is shown and not billed; a compaction or an advisor is billed though the totals leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tproxy.sandbox.asked import Asked
from tproxy.sandbox.blocks import Block, compose
from tproxy.sandbox.books import Bill
from tproxy.sandbox.cache import Prompt
from tproxy.sandbox.catalogue import resolved
from tproxy.sandbox.script import Script


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A message before it is put in a form.

    `usage_start` is the usage of message_start, `usage_delta` that of message_delta, `usage_whole` that of a message
    in one piece; None: left out. `bills` is what each model is paid for if the answer is delivered whole; the first
    of them grows with the output.
    """

    id: str
    model_asked: str
    model_served: str
    blocks: list[Block]
    stop: dict[str, Any]
    usage_start: dict[str, Any]
    usage_delta: dict[str, Any] | None
    usage_whole: dict[str, Any] | None
    context_management: dict[str, Any] | None
    bills: list[Bill]

    @property
    def output_tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)

    def message(self) -> dict[str, Any]:
        """The whole message (API reference, "Create a Message")."""
        message = self._head(self.model_served) | {"content": [block.whole for block in self.blocks]} | self.stop
        if self.usage_whole is not None:
            message["usage"] = self.usage_whole
        if self.context_management is not None:
            message["context_management"] = self.context_management
        return message

    def opening(self) -> dict[str, Any]:
        """The message of message_start: nothing in it yet. It names the model asked for, also before a fallback."""
        return self._head(self.model_asked) | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": self.usage_start,
        }

    def _head(self, model: str) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": model}


def answer(asked: Asked, script: Script, prompt: Prompt, name: str, *, tier: str = "standard") -> Answer:
    """Make the answer to a request.

    Args:
        prompt: the request's tokens, by what they cost.
        name: letters that no other answer has.
        tier: `usage.service_tier`: `standard`, or `batch`.
    """
    content = compose(asked, script, name)
    blocks, stop_reason = content.blocks, content.stop_reason
    details = None
    if script.refusal:
        blocks, stop_reason = [], "refusal"
        details = {
            "type": "refusal",
            "category": "cyber",
            "explanation": "This request was declined under the usage policy.",
        }
    output = sum(block.tokens for block in blocks)
    thinking = sum(block.tokens for block in blocks if block.whole["type"] == "thinking")
    searches = sum(block.whole["type"] == "server_tool_use" for block in blocks)
    asked_model = resolved(asked.model)
    served = asked_model if script.fallback is None else resolved(script.fallback)
    bill = Bill(
        model=served,
        input_tokens=prompt.input,
        cache_write_5m_tokens=prompt.write_5m,
        cache_write_1h_tokens=prompt.write_1h,
        cache_read_tokens=prompt.read,
        output_tokens=output,
        web_search_requests=searches,
        inference_geo=asked.inference_geo,
        speed=asked.speed,
        service_tier=tier,
    )

    counts = {
        "input_tokens": prompt.input,
        "cache_creation_input_tokens": prompt.write,
        "cache_read_input_tokens": prompt.read,
    }
    split = {"ephemeral_5m_input_tokens": prompt.write_5m, "ephemeral_1h_input_tokens": prompt.write_1h}
    full = counts | {"cache_creation": split, "output_tokens": min(output, 1), "service_tier": tier}
    full["inference_geo"] = asked.inference_geo
    if asked.speed is not None:
        full["speed"] = asked.speed
    late: dict[str, Any] = {"output_tokens": output}
    if thinking:
        late["output_tokens_details"] = {"thinking_tokens": thinking}
    if searches:
        late["server_tool_use"] = {"web_search_requests": searches, "web_fetch_requests": 0}
    bills = [] if script.refusal else [bill]
    entries, beside = _iterations(script, asked_model, counts | {"cache_creation": split}, bill)
    if entries:
        late["iterations"] = entries
        bills += beside

    return Answer(
        id=f"msg_{name}",
        model_asked=asked_model,
        model_served=served,
        blocks=blocks,
        stop={"stop_reason": stop_reason, "stop_sequence": content.stop_sequence, "stop_details": details},
        usage_start=full,
        usage_delta=None if script.nousage else counts | late,
        usage_whole=None if script.nousage else full | late,
        context_management={"applied_edits": []} if asked.context_management else None,
        bills=bills,
    )


def _iterations(
    script: Script, asked_model: str, counts: dict[str, Any], bill: Bill
) -> tuple[list[dict[str, Any]], list[Bill]]:
    """The entries of `usage.iterations`, and what is billed for those that the totals leave out."""
    entries: list[dict[str, Any]] = []
    beside: list[Bill] = []

    def aside(kind: str, model: str, tokens_in: int, tokens_out: int) -> dict[str, Any]:
        beside.append(
            Bill(
                model=model,
                input_tokens=tokens_in,
                output_tokens=tokens_out,
                inference_geo=bill.inference_geo,
                service_tier=bill.service_tier,
            )
        )
        nothing = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {"type": kind, "input_tokens": tokens_in, **nothing, "output_tokens": tokens_out}

    if script.compaction:
        entries.append(aside("compaction", asked_model, 2 * script.compaction, script.compaction))
    if script.fallback is not None:
        entries.append({"type": "message", "model": asked_model, **counts, "output_tokens": 0})
        entries.append({"type": "fallback_message", "model": bill.model, **counts, "output_tokens": bill.output_tokens})
    elif script.iterations or script.compaction or script.advisor:
        entries.append({"type": "message", "model": bill.model, **counts, "output_tokens": bill.output_tokens})
    if script.advisor is not None:
        model = resolved(script.advisor)
        entries.append(aside("advisor_message", model, 2 * bill.input_tokens, 50) | {"model": model})
    return entries, beside
