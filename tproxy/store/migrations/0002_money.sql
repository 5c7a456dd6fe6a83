-- Who may spend what, and what was spent: subjects, budgets, what running exchanges hold, and sums of the rows.

-- Somebody or something that can have terms: a key, team, user, customer, tag, or a set of terms to be shared.
-- The whole of it is in `document` (JSON, tproxy/store/subjects.py); the columns are what is looked for.
CREATE TABLE subject (
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    alias      TEXT,
    team       TEXT,
    user       TEXT,
    terms_of   TEXT,
    created_us INTEGER NOT NULL,
    document   TEXT    NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;

CREATE UNIQUE INDEX subject_key_alias ON subject (alias) WHERE kind = 'key' AND alias IS NOT NULL;
CREATE INDEX subject_created ON subject (kind, created_us, id);
CREATE INDEX subject_team ON subject (team, kind) WHERE team IS NOT NULL;
CREATE INDEX subject_user ON subject (user, kind) WHERE user IS NOT NULL;
CREATE INDEX subject_terms ON subject (terms_of) WHERE terms_of IS NOT NULL;

-- One limit of one subject over one period ('' is for ever). `spent` is since `started_us`, `held` is the sum of the
-- reservations. Without `limit_nano` it refuses nothing: there is a soft limit only. `position` is its place among the
-- budgets of the subject.
CREATE TABLE budget (
    id         INTEGER NOT NULL PRIMARY KEY,
    kind       TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    period     TEXT    NOT NULL,
    position   INTEGER NOT NULL DEFAULT 0,
    limit_nano INTEGER,
    soft_nano  INTEGER,
    cut        INTEGER NOT NULL DEFAULT 0,
    spent_nano INTEGER NOT NULL DEFAULT 0,
    held_nano  INTEGER NOT NULL DEFAULT 0,
    started_us INTEGER NOT NULL,
    reset_us   INTEGER,
    UNIQUE (kind, subject, period)
) STRICT;

-- What a running exchange holds of a budget; gone when the exchange's row is closed.
CREATE TABLE reservation (
    exchange    TEXT    NOT NULL,
    budget      INTEGER NOT NULL,
    mode        TEXT    NOT NULL,
    amount_nano INTEGER NOT NULL,
    PRIMARY KEY (exchange, budget)
) STRICT, WITHOUT ROWID;

-- All closed rows of one subject (callers by their id, such as `key:…`; the whole proxy is kind 'proxy', id '').
-- `written_off_nano` is what a reset of the figure that people see has taken out of it.
CREATE TABLE tally (
    kind              TEXT    NOT NULL,
    id                TEXT    NOT NULL,
    exchanges         INTEGER NOT NULL DEFAULT 0,
    prompt_tokens     INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost_nano         INTEGER NOT NULL DEFAULT 0,
    written_off_nano  INTEGER NOT NULL DEFAULT 0,
    -- of those whose cost was expected, and is exact
    expected_exchanges  INTEGER NOT NULL DEFAULT 0,
    expected_nano       INTEGER NOT NULL DEFAULT 0,
    expected_cost_nano  INTEGER NOT NULL DEFAULT 0,
    expected_error_nano INTEGER NOT NULL DEFAULT 0,
    last_us           INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX tally_cost ON tally (kind, cost_nano DESC);

-- The same by day (UTC, of the time at which it was accepted), caller and model. `kind` and `id` say what it is summed
-- by: 'caller' has every exchange once, and so has 'proxy', whose id and caller are empty; 'team' and 'user' have
-- those that have one. 'customer', and 'tag' once for each tag, have those that came to tokens or a cost.
CREATE TABLE daily (
    kind              TEXT    NOT NULL,
    day               TEXT    NOT NULL,
    id                TEXT    NOT NULL,
    caller            TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    exchanges         INTEGER NOT NULL DEFAULT 0,
    failures          INTEGER NOT NULL DEFAULT 0,
    input_tokens      INTEGER NOT NULL DEFAULT 0,
    output_tokens     INTEGER NOT NULL DEFAULT 0,
    cache_read_tokens  INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    cost_nano         INTEGER NOT NULL DEFAULT 0,
    unpriced          INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, day, id, caller, model)
) STRICT, WITHOUT ROWID;

ALTER TABLE exchange ADD COLUMN agent TEXT;
ALTER TABLE exchange ADD COLUMN parent_agent TEXT;
ALTER TABLE exchange ADD COLUMN expected_nano INTEGER;

-- Logs of one team and of one user; the callers, customers and sessions have theirs since 0001.
CREATE INDEX exchange_team ON exchange (team, accepted_us) WHERE team IS NOT NULL;
CREATE INDEX exchange_user ON exchange (user, accepted_us) WHERE user IS NOT NULL;

-- Callers whose key was rotated, and the caller that it is now (`key:<hash>` both; never a chain). The rows and the sums
-- by day stay under the caller of their time; who reads them counts them for the one that it is now.
CREATE TABLE renamed (
    old TEXT NOT NULL PRIMARY KEY,
    new TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX renamed_new ON renamed (new);

-- The sums of the rows that have ended so far, as tproxy/store/sums.py makes them when a row is closed.
CREATE TEMP VIEW billed AS
SELECT rowid AS row, customer, tags FROM exchange
 WHERE ended != 'open' AND (input_tokens > 0 OR output_tokens > 0 OR cache_read_tokens > 0
       OR cache_write_5m_tokens > 0 OR cache_write_1h_tokens > 0 OR cost_nano > 0);

CREATE TEMP VIEW part AS
SELECT exchange.rowid AS row, 'caller' AS kind, caller AS of FROM exchange WHERE ended != 'open'
UNION ALL SELECT rowid, 'team', team FROM exchange WHERE ended != 'open' AND team IS NOT NULL
UNION ALL SELECT rowid, 'user', user FROM exchange WHERE ended != 'open' AND user IS NOT NULL
UNION ALL SELECT billed.row, 'customer', customer FROM billed WHERE customer IS NOT NULL
UNION ALL SELECT billed.row, 'tag', json_each.value FROM billed, json_each(billed.tags);

INSERT INTO tally (kind, id, exchanges, prompt_tokens, completion_tokens, cost_nano, last_us)
SELECT part.kind, part.of, count(*),
       sum(coalesce(input_tokens, 0) + coalesce(cache_read_tokens, 0)
           + coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0)),
       sum(coalesce(output_tokens, 0)), sum(coalesce(cost_nano, 0)), max(coalesce(ended_us, accepted_us))
  FROM part JOIN exchange ON exchange.rowid = part.row
 GROUP BY part.kind, part.of;

INSERT INTO tally (kind, id, exchanges, prompt_tokens, completion_tokens, cost_nano, last_us)
SELECT 'proxy', '', sum(exchanges), sum(prompt_tokens), sum(completion_tokens), sum(cost_nano), max(last_us)
  FROM tally WHERE kind = 'caller' HAVING count(*) > 0;

INSERT INTO daily (kind, day, id, caller, model, exchanges, failures, input_tokens, output_tokens, cache_read_tokens,
                   cache_write_tokens, cost_nano, unpriced)
SELECT part.kind, date(accepted_us / 1000000, 'unixepoch') AS day, part.of, caller,
       coalesce(model_served, model_asked, '') AS model, count(*),
       sum(ended != 'finished' OR coalesce(status, 0) >= 400),
       sum(coalesce(input_tokens, 0)), sum(coalesce(output_tokens, 0)), sum(coalesce(cache_read_tokens, 0)),
       sum(coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0)),
       sum(coalesce(cost_nano, 0)), sum(certainty = 'unpriced')
  FROM part JOIN exchange ON exchange.rowid = part.row
 GROUP BY part.kind, day, part.of, caller, model;

INSERT INTO daily (kind, day, id, caller, model, exchanges, failures, input_tokens, output_tokens, cache_read_tokens,
                   cache_write_tokens, cost_nano, unpriced)
SELECT 'proxy', day, '', '', model, sum(exchanges), sum(failures), sum(input_tokens), sum(output_tokens),
       sum(cache_read_tokens), sum(cache_write_tokens), sum(cost_nano), sum(unpriced)
  FROM daily WHERE kind = 'caller' GROUP BY day, model;

DROP VIEW part;
DROP VIEW billed;
