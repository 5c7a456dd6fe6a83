"""The names of what spans hold: OpenTelemetry's semantic conventions for generative AI, and what goes beyond them.

No other file spells one of these names, so that a new version of the conventions is a change of this file alone. All
of those for generative AI are in development: none is stable, and they have had a repository of their own, without a
release, since the version that is named here, the last one that was published with all other conventions.

What is known to come: `cache_creation` will be called `cache_write`. It is not sent under both names, for there are
backends that add up whatever begins with `gen_ai.usage.`.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "1.41.0"
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{VERSION}"

# Generative AI (docs/gen-ai/gen-ai-spans.md and anthropic.md of the conventions).
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
CONVERSATION: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"  # seconds
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"  # those of the cache are among them
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_CREATION_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

# Values that the conventions give to them.
ANTHROPIC: Final = "anthropic"
CHAT: Final = "chat"
TEXT_COMPLETION: Final = "text_completion"

# The stable ones of all spans and resources.
ERROR_TYPE: Final = "error.type"
OTHER_ERROR: Final = "_OTHER"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
REQUEST_METHOD: Final = "http.request.method"
STATUS_CODE: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
USER_AGENT: Final = "user_agent.original"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"

# In development, for all spans; read by Langfuse, too.
USER: Final = "user.id"
SESSION: Final = "session.id"

# In no convention, but read by Langfuse (and the first also by others).
COST: Final = "gen_ai.usage.cost"  # US dollars
LANGFUSE_TAGS: Final = "langfuse.trace.tags"
LANGFUSE_USAGE: Final = "langfuse.observation.usage_details"  # JSON, in which no token counts twice
LANGFUSE_FIRST_CONTENT: Final = "langfuse.observation.completion_start_time"  # ISO 8601

# Our own. Times are milliseconds since the exchange was accepted.
EXCHANGE: Final = "tproxy.exchange.id"
ENDED: Final = "tproxy.ended"
CERTAINTY: Final = "tproxy.certainty"
CALLER: Final = "tproxy.caller.id"
CALLER_ALIAS: Final = "tproxy.caller.alias"
TEAM: Final = "tproxy.team"
KEY_USER: Final = "tproxy.user"
CUSTOMER: Final = "tproxy.customer"
TAGS: Final = "tproxy.tags"
AGENT: Final = "tproxy.agent.id"
PARENT_AGENT: Final = "tproxy.parent_agent.id"
UPSTREAM: Final = "tproxy.upstream"
REQUEST_ID: Final = "tproxy.request_id"
COST_NANO: Final = "tproxy.cost_nano_usd"
PRICE_VERSION: Final = "tproxy.price_version"
CACHE_WRITE_5M_TOKENS: Final = "tproxy.tokens.cache_write_5m"
CACHE_WRITE_1H_TOKENS: Final = "tproxy.tokens.cache_write_1h"
WEB_SEARCHES: Final = "tproxy.web_searches"
SERVICE_TIER: Final = "tproxy.service_tier"
SPEED: Final = "tproxy.speed"
GEO: Final = "tproxy.geo"
BYTES_IN: Final = "tproxy.bytes_in"
BYTES_OUT: Final = "tproxy.bytes_out"
DIALLED_MS: Final = "tproxy.time.dialled_ms"
HEAD_MS: Final = "tproxy.time.head_ms"
FIRST_CONTENT_MS: Final = "tproxy.time.first_content_ms"
LAST_BYTE_MS: Final = "tproxy.time.last_byte_ms"
TAP_FAULT: Final = "tproxy.tap_fault"
UNSAMPLED: Final = "tproxy.trace.unsampled"

# Events of a span.
HEAD_EVENT: Final = "tproxy.head"
FIRST_CONTENT_EVENT: Final = "tproxy.first_content"

# Texts that are another one in each span.
UNIQUE: Final = frozenset({EXCHANGE, RESPONSE_ID, REQUEST_ID, LANGFUSE_USAGE, LANGFUSE_FIRST_CONTENT})
