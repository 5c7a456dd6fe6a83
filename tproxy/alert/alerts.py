"""From what is seen to what is told: the looks, when they are made, and where their alerts go.

    Seen (counters) ─┐
    ledger, exports ─┼──► rules ──► episodes ──► the log, at once; the channels, by `delivery`
    the file ────────┘                 └──► the table `episode`

| look | how often |
|---|---|
| upstream, credentials, models, ledger, exports | every `TICK_SECONDS` |
| budgets | every minute; at once when one passes its soft limit, at the next tick after a refusal |
| keys that expire, spend by day | every five minutes |

What is read from the file is read in a thread. Whatever fails in here is a line of the log, and is tried again with the
next look; exchanges know nothing of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from zoneinfo import ZoneInfo

import structlog
import trio

from tproxy import setting_tables
from tproxy.alert import alert, figures, rules
from tproxy.alert.alert import Alert, Of
from tproxy.alert.channel import Channel, Post, Slack, Webhook, one_line
from tproxy.alert.delivery import Delivery
from tproxy.alert.episodes import OPEN_MAX, Episodes, is_told
from tproxy.alert.seen import Seen
from tproxy.errors import LedgerUnavailable
from tproxy.export.post import Poster
from tproxy.export.runner import SinkStatus
from tproxy.flow.identify import shown
from tproxy.store import episodes as table
from tproxy.store import subjects
from tproxy.store.directory import Directory
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.sqlite import SqliteLedger

TICK_SECONDS: Final = 5.0
BUDGETS_SECONDS: Final = 60.0
FILE_SECONDS: Final = 300.0
EXPORT_SECONDS: Final = 300.0  # an export is in trouble that has taken nothing for so long
FADE_US: Final = 7 * 86_400_000_000  # a model that was not used for so long is told anew when it is

log = structlog.get_logger("tproxy.alert")

T = TypeVar("T")


class Desk(Protocol):
    """What is needed of `manage/desk.py`."""

    @property
    def directory(self) -> Directory: ...

    @property
    def clock(self) -> Callable[[], int]: ...

    @property
    def zone(self) -> Callable[[], ZoneInfo]: ...

    async def look(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Run `read` in a thread, on a connection that cannot write."""


class Alerts:
    """See the head of this file.

    Args:
        sinks: how the exports do, asked at each tick.

    Attributes:
        seen: the observer.
        delivery: to the channels.
    """

    def __init__(
        self,
        settings: setting_tables.Alerts,
        ledger: SqliteLedger,
        sinks: Callable[[], Sequence[SinkStatus]] = lambda: (),
        poster: Poster | None = None,
    ) -> None:
        self.seen = Seen()
        self._poster = poster or Poster()
        self.delivery = Delivery({})
        self._ledger = ledger
        self._sinks = sinks
        self._failing_since: dict[str, float] = {}
        self._unwritable_since: float | None = None
        self._budgets_due = False
        self._wake = trio.Event()
        self._directory: Directory | None = None
        self.episodes = Episodes((), self._name)
        self.take(settings)

    def take(self, settings: setting_tables.Alerts) -> None:
        """Go by other settings from now on."""
        self._settings = settings
        self.delivery.channels = channels(settings, self._poster.post)

    def soft_limit_passed(self) -> None:
        """Look at the budgets now."""
        self._budgets_due = True
        self._wake.set()

    async def run(self, desk: Desk) -> None:
        """Look and tell, until cancelled."""
        self._directory = desk.directory
        try:
            rows = await desk.look(lambda connection: table.all_open(connection, OPEN_MAX))
        except (LedgerUnusable, sqlite3.Error) as fault:
            rows = []
            log.warning("alerts that were told before are not known", why=str(fault))
        self.episodes = Episodes(rows, self._name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.delivery.run)
                await self._watch(desk)
        finally:
            with trio.move_on_after(1, shield=True):
                await self._poster.aclose()

    async def _watch(self, desk: Desk) -> None:
        budgets_at = file_at = trio.current_time()
        while True:
            self._wake = trio.Event()
            try:
                self._tell(self._look_at_counters(desk.clock()))
                if self._budgets_due or self.seen.refused_of or trio.current_time() >= budgets_at:
                    self._budgets_due, budgets_at = False, trio.current_time() + BUDGETS_SECONDS
                    self._tell(await self._look_at_budgets(desk))
                if trio.current_time() >= file_at:
                    file_at = trio.current_time() + FILE_SECONDS
                    self._tell(await self._look_at_file(desk))
                await self._write()
            except (LedgerUnusable, LedgerUnavailable, sqlite3.Error) as fault:
                log.warning("alerts cannot be looked after now", why=str(fault))
            except Exception:
                log.exception("alerts: a bug")
            with trio.move_on_after(TICK_SECONDS):
                await self._wake.wait()

    def _look_at_counters(self, now_us: int) -> list[Alert]:
        """What is in memory."""
        settings, seen, episodes = self._settings, self.seen, self.episodes
        failing = rules.errors(*seen.upstream.sums(now_us), settings.error_rate)
        refused = [rules.credential(name, *each.window.sums(now_us)) for name, each in seen.credentials.items()]
        ledger = rules.ledger(
            unwritable_seconds=self._unwritable(),
            behind_seconds=self._ledger.behind_us / 1_000_000,
            queued=self._ledger.queued,
            limit=settings.ledger_seconds,
        )
        exports = [rules.export(name, seconds, rows, EXPORT_SECONDS) for name, seconds, rows in self._failing()]
        told: list[Alert] = []
        told += episodes.look(alert.ERRORS, _those(failing), now_us)
        told += episodes.look(alert.CREDENTIAL, _those(*refused, *self._unheard(now_us)), now_us)
        told += episodes.look(alert.LEDGER, _those(ledger), now_us)
        told += episodes.look(alert.EXPORT, _those(*exports), now_us)
        models, seen.unpriced = seen.unpriced, set()
        for model in sorted(models):
            if len(episodes.subjects(alert.UNPRICED)) < rules.MODELS_TOLD or self._is_open(rules.unpriced(model)):
                told += episodes.hear(rules.unpriced(model), now_us)
        episodes.fade(alert.UNPRICED, FADE_US, now_us)
        return told

    async def _look_at_budgets(self, desk: Desk) -> list[Alert]:
        refused, self.seen.refused_of = self.seen.refused_of, set()
        now_us, zone = desk.clock(), desk.zone()
        standings = await desk.look(lambda connection: figures.budgets(connection, now_us, zone))
        soft, spent = [], []
        for standing in standings:
            name = self._name(Of(standing.kind, standing.subject))
            soft.append(rules.soft_budget(standing, name))
            was_refused = (standing.kind, standing.subject) in refused
            spent.append(rules.budget(standing, name, refused=was_refused))
        whole = len(standings) < figures.FOUND_MAX
        told = self.episodes.look(alert.SOFT_BUDGET, _those(*soft), now_us, whole=whole)
        return told + self.episodes.look(alert.BUDGET, _those(*spent), now_us, whole=whole)

    async def _look_at_file(self, desk: Desk) -> list[Alert]:
        settings, now_us = self._settings, desk.clock()
        days = settings.key_expiry_days
        keys = await desk.look(lambda connection: figures.expiring(connection, now_us, days))
        whole = len(keys) < figures.FOUND_MAX
        keys += [(key.id, shown(key), key.expires_us) for key in desk.directory.file_keys.values() if key.expires_us]
        expiring = [rules.key_expiry(id, name, expires_us, now_us, days) for id, name, expires_us in keys]
        told = self.episodes.look(alert.KEY_EXPIRY, _those(*expiring), now_us, whole=whole)
        spent = await desk.look(lambda connection: figures.spend_days(connection, now_us, settings.spend_least))
        unusual = [
            rules.spend(caller, self._name(Of("caller", caller)), nano, settings.spend_factor, settings.spend_least)
            for caller, nano in spent.items()
        ]
        whole = len(spent) < figures.FOUND_MAX
        return told + self.episodes.look(alert.SPEND, _those(*unusual), now_us, whole=whole)

    def _tell(self, alerts: Sequence[Alert]) -> None:
        for each in alerts:
            say = log.warning if each.resolved_us is None else log.info
            say("alert", kind=each.kind, severity=each.severity, of=one_line(each.name), why=one_line(each.summary))
            if is_told(each):
                self.delivery.put(each)

    async def _write(self) -> None:
        put, gone = self.episodes.unwritten()
        if (put or gone) and self._ledger.writable:
            await self._ledger.write(lambda connection: table.put_all(connection, put, gone))
            self.episodes.written(put, gone)

    def _unwritable(self) -> float:
        """For how many seconds the ledger has been seen not to be writable."""
        if self._ledger.writable:
            self._unwritable_since = None
            return 0.0
        if self._unwritable_since is None:
            self._unwritable_since = trio.current_time()
        return trio.current_time() - self._unwritable_since

    def _failing(self) -> list[tuple[str, float, int]]:
        """Exports that do not take what is there: which, for how many seconds by now, how many rows wait."""
        now, failing = trio.current_time(), [each for each in self._sinks() if each.fault is not None]
        self._failing_since = {each.name: self._failing_since.get(each.name, now) for each in failing}
        return [(each.name, now - self._failing_since[each.name], each.behind) for each in failing]

    def _unheard(self, now_us: int) -> Iterable[alert.Finding | None]:
        """Credentials that an earlier process told of, and that nothing was asked with yet."""
        known = (Of.parse(subject) for subject in self.episodes.subjects(alert.CREDENTIAL))
        return [rules.credential(of.id, 0, 0) for of in known if of.id not in self.seen.credentials]

    def _is_open(self, finding: alert.Finding) -> bool:
        return str(finding.of) in self.episodes.subjects(finding.kind)

    def _name(self, of: Of) -> str:
        """What people call whom an alert is of."""
        kind, id = of.kind, of.id
        if kind == "caller" and id.startswith("key:"):
            kind, id = subjects.KEY, id.removeprefix("key:")
        find = None if self._directory is None else self._directory.find
        subject = None if find is None else find(kind, id)
        if subject is not None:
            return shown(subject)
        return f"{id[:8]}…" if kind == subjects.KEY else id


def channels(settings: setting_tables.Alerts, post: Post) -> Mapping[str, Channel]:
    """Those that are set, by the names of `delivery`."""
    found: dict[str, Channel] = {}
    if settings.webhook_url is not None:
        found["webhook"] = Webhook(settings.webhook_url, _plain(settings.webhook_secret), post)
    if (slack := _plain(settings.slack_url)) is not None:
        found["slack"] = Slack(slack, post)
    if (smtp := _plain(settings.smtp_url)) is not None and settings.email_from is not None:
        from tproxy.alert.mail import Mail, MailServer  # with the standard library's mail, which few need

        found["email"] = Mail(MailServer.parse(smtp), settings.email_from, settings.email_to)
    return found


def _plain(secret: Any) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _those(*findings: alert.Finding | None) -> list[alert.Finding]:
    return [each for each in findings if each is not None]
