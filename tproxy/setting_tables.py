"""The tables of config.toml below `[tproxy]`: each setting with its name, type, default, unit and help.

Every unit is in the help or in the name. Every time and every size is finite and above zero. How the file is read is in
`settings.py`, what a kind of value accepts in `setting_kinds.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from tproxy.protocol import signature
from tproxy.setting_kinds import (
    Address,
    Addresses,
    BaseUrl,
    Certificates,
    Count,
    Database,
    Directory,
    HeaderLines,
    MetadataNames,
    Money,
    Patterns,
    Period,
    Seconds,
    Secret,
    Secrets,
    SecretUrl,
    Size,
    SmtpUrl,
    TagPatterns,
    Texts,
    TimeZone,
    WebUrl,
)
from tproxy.tomlfile import Table

DEFAULT_KEY = "env:ANTHROPIC_API_KEY"


def _signing(secret: SecretStr) -> SecretStr:
    signature.key(secret.get_secret_value())
    return secret


SigningSecret = Annotated[Secret, AfterValidator(_signing)]


class Upstream(Table):
    """Where requests go, and over which connections."""

    base_url: BaseUrl = Field(
        default="https://api.anthropic.com", title="URL", description="the API; it may have a path prefix"
    )
    api_keys: Secrets = Field(
        default=(SecretStr(DEFAULT_KEY),), description="the real Anthropic keys; access = own needs none"
    )
    on_disconnect: Literal["cut", "drain"] = Field(
        default="cut", description="when the client leaves: cut the upstream, or read the answer to its end"
    )
    inference_geo: Literal["global", "us"] = Field(
        default="global",
        description="where requests that name no region are served: the default of the keys' workspace",
    )
    ca_file: Certificates = Field(
        default=None, examples=["ca.pem"], description="trusted in place of the system's certificates"
    )
    forward_traceparent: bool = Field(
        default=True, title="true or false", description="send the client's traceparent and tracestate on"
    )
    max_connections: Count = Field(default=4096, description="upstream connections at a time")
    max_idle_seconds: Seconds = Field(default=30, description="an unused connection is kept so long")
    max_age_seconds: Seconds = Field(default=600, description="an older connection is not used again")


class Timeouts(Table):
    """The deadlines of every wait."""

    connect: Seconds = Field(default=10, description="name, TCP and TLS together")
    first_byte: Seconds = Field(default=600, description="from the request's end to the answer's head")
    idle: Seconds = Field(default=600, description="between two reads of the answer")
    body: Seconds = Field(default=300, description="the whole request body")
    write: Seconds = Field(default=60, description="a client or upstream that takes nothing")
    head: Seconds = Field(default=10, description="a request's head")
    queue: Seconds = Field(default=10, description="waiting for a free upstream connection")
    drain: Seconds = Field(default=600, description="how long on_disconnect = drain reads on")


class Limits(Table):
    """The bounds of what a client may send."""

    max_body_bytes: Size = Field(default=33554432, description="a request body that is read whole")
    max_held_bytes: Size = Field(
        default=1073741824, description="all bodies that are read whole and whose exchanges run, together"
    )
    max_upload_bytes: Size = Field(default=536870912, description="a body that streams through: files, batches, skills")
    max_header_bytes: Size = Field(default=65536, description="a request's line and header fields together")
    max_headers: Count = Field(default=100, description="header fields in a request")
    max_customers: Count = Field(
        default=100000, description="customers that are kept because a request named them; more are in its row only"
    )


class Budgets(Table):
    """What holds for budgets that do not say otherwise."""

    mode: Literal["expected", "hard", "soft"] = Field(
        default="expected", description="the default of a budget's budget_mode"
    )
    max_budget: Money | None = Field(
        default=None, title="US dollars", examples=[1000], description="what all callers together may spend"
    )
    budget_duration: Period | None = Field(
        default=None,
        title="period",
        examples=["30d"],
        description="how long max_budget is for, such as 1d, 7d, 1mo; not set: for ever",
    )
    wait: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = Field(
        default=5, title="seconds", description="how long an exchange may wait for money held by others"
    )
    timezone: TimeZone = Field(default="UTC", title="IANA name", description="where days and months begin")


class Log(Table):
    """What is written to the log, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is less than this is left out"
    )
    format: Literal["json", "console"] = Field(default="json", description="one JSON object a line, or text for people")


class Metrics(Table):
    """What `/metrics` tells, and to whom."""

    enabled: bool = Field(default=True, title="true or false", description="count at all; off, /metrics is 404")
    public: bool = Field(default=False, title="true or false", description="show /metrics without the master key")
    enable_end_user_cost_tracking_prometheus_only: bool = Field(
        default=False, title="true or false", description="label by end user (customer)"
    )
    disable_end_user_cost_tracking_prometheus_only: bool = Field(
        default=False, title="true or false", description="never label by end user, whatever else is set"
    )
    disable_end_user_cost_tracking: bool = Field(
        default=False, title="true or false", description="keep no end user at all: neither in rows and sums nor here"
    )
    max_label_sets: Count = Field(
        default=1000, description="callers with their models that are told apart; what comes later is one, named other"
    )
    emit_stream_label: bool = Field(
        default=False, title="true or false", description="label requests by whether they stream"
    )
    metadata_labels: MetadataNames = Field(
        default=(), title="list of names", description="labels from a key's metadata, such as metadata.department"
    )
    tags: TagPatterns = Field(
        default=(),
        title="list of patterns",
        description='a label tag_… for each, true or false: a tag, or "User-Agent: claude-cli/*"',
    )


class Capture(Table):
    """Which bodies are kept, beside the ledger, and for how long. By default none is."""

    errors: bool = Field(
        default=False, title="true or false", description="keep the bodies of exchanges that did not end well"
    )
    sample_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0, title="0 to 1", description="keep those of this share of all exchanges"
    )
    keys: Texts = Field(
        default=(), title="list of aliases or hashes", description="keep those of these keys, all of them"
    )
    max_bytes: Size = Field(default=262144, description="of each body; what is more is cut off, and said to be")
    patterns: Patterns = Field(
        default=(), title="list of regular expressions", description="what they match is masked, beside keys and media"
    )
    database: Database = Field(default="sqlite:captures.db", title="sqlite:PATH", description="where bodies are kept")
    retention_days: Count = Field(default=7, title="days", description="older ones are deleted")
    max_total_bytes: Size = Field(default=1073741824, description="past it the oldest are deleted")


class Jsonl(Table):
    """Exchanges as lines of JSON in files of a directory."""

    directory: Directory = Field(
        default=None, examples=["exports"], description="where the files are made; unset: none"
    )
    max_file_bytes: Size = Field(default=67108864, description="a file that has reached it is followed by another one")
    keep_files: Annotated[int, Field(ge=0)] = Field(
        default=0, title="number", description="more than these are deleted, the oldest first; 0: none is"
    )


class Webhook(Table):
    """Exchanges as signed POST requests."""

    url: WebUrl = Field(default=None, examples=["https://hooks.example.com/tproxy"], description="unset: none are sent")
    secret: SigningSecret | None = Field(
        default=None, title="secret", examples=["env:TPROXY_WEBHOOK_SECRET"], description="signs them (HMAC-SHA256)"
    )


class Otlp(Table):
    """Exchanges as spans, by OTLP over HTTP."""

    endpoint: WebUrl = Field(
        default=None, examples=["http://127.0.0.1:4318"], description="a collector; /v1/traces is added; unset: none"
    )
    headers: HeaderLines = Field(
        default=(),
        title="list of name=value",
        description="sent with each request, such as a vendor's key",
    )
    ca_file: Certificates = Field(
        default=None, examples=["ca.pem"], description="trusted in place of the system's certificates"
    )
    service_name: str = Field(default="tproxy", min_length=1, title="text", description="service.name of all spans")


class S3(Table):
    """Exchanges as objects of an S3-compatible store: compressed lines of JSON, by day."""

    bucket: str | None = Field(default=None, title="name", examples=["tproxy"], description="unset: none are written")
    prefix: str = Field(default="exchanges", title="text", description="what the names of the objects begin with")
    endpoint: WebUrl = Field(default=None, examples=["https://minio.example.com"], description="unset: Amazon's own")
    region: str = Field(default="us-east-1", title="name", description="the bucket's")
    access_key_id: Secret | None = Field(
        default=None,
        title="secret",
        examples=["env:AWS_ACCESS_KEY_ID"],
        description="unset, with its secret: the machine's own credentials",
    )
    secret_access_key: Secret | None = Field(
        default=None, title="secret", examples=["env:AWS_SECRET_ACCESS_KEY"], description="belongs to access_key_id"
    )
    every_seconds: Seconds = Field(default=300, description="an object is written as often, or when it is full")

    @model_validator(mode="after")
    def _both_or_none(self) -> S3:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("must have both access_key_id and secret_access_key, or neither")
        return self


class Export(Table):
    """Who is given every exchange once its row is closed."""

    jsonl: Jsonl = Field(default_factory=Jsonl)
    webhook: Webhook = Field(default_factory=Webhook)
    otlp: Otlp = Field(default_factory=Otlp)
    s3: S3 = Field(default_factory=S3)


class Alerts(Table):
    """When somebody is told, and how. The log is told of all."""

    webhook_url: WebUrl = Field(
        default=None, examples=["https://hooks.example.com/alerts"], description="gets each alert as signed JSON"
    )
    webhook_secret: SigningSecret | None = Field(
        default=None, title="secret", examples=["env:TPROXY_WEBHOOK_SECRET"], description="signs it (HMAC-SHA256)"
    )
    slack_url: SecretUrl | None = Field(
        default=None, title="secret URL", examples=["env:SLACK_WEBHOOK_URL"], description="gets it as Slack's text"
    )
    smtp_url: SmtpUrl | None = Field(
        default=None,
        title="secret URL",
        examples=["smtps://user:password@mail.example.com"],
        description="sends it as e-mail; smtp:// begins plainly and asks for TLS where that is offered",
    )
    email_from: Address | None = Field(
        default=None, title="address", examples=["tproxy@example.com"], description="sender"
    )
    email_to: Addresses = Field(
        default=(), title="list of addresses", examples=[["ops@example.com"]], description="recipients"
    )
    key_expiry_days: Seconds = Field(default=3, title="days", description="so long before a key expires")
    spend_factor: Seconds = Field(
        default=3, title="times", description="a caller's last day against its usual one of four weeks"
    )
    spend_least: Money = Field(default=10, title="US dollars", description="a day that costs less is never unusual")
    error_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.1,
        title="0 to 1",
        description="share of upstream failures in five minutes, of twenty exchanges or more",
    )
    ledger_seconds: Seconds = Field(default=5, description="so long behind, or not writable, is the ledger in trouble")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.smtp_url is not None and not (self.email_from and self.email_to):
            raise ValueError("smtp_url sends e-mail, and needs email_from and email_to")
        if self.smtp_url is None and (self.email_from or self.email_to):
            raise ValueError("email_from and email_to are for smtp_url, which is not set")
        if self.webhook_secret is not None and self.webhook_url is None:
            raise ValueError("webhook_secret is for webhook_url, which is not set")
        return self
