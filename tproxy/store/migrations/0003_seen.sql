-- What is told of exchanges once they have ended: their order, who has been told of them, and what is being told.

ALTER TABLE exchange ADD COLUMN traceparent TEXT;

-- The rows that have ended, in the order in which they did. `digest` is that of the row and of the entry before it, so
-- that a row that was changed, put in or taken out afterwards is found (tproxy/store/journal.py). The newest entry is
-- never deleted, also where retention has deleted its row: numbers are never used again.
CREATE TABLE settled (
    seq    INTEGER NOT NULL PRIMARY KEY,
    id     TEXT    NOT NULL,
    digest BLOB    NOT NULL
) STRICT;

-- How far each export has come: all entries up to `seq` have been taken by it.
CREATE TABLE cursor (
    sink       TEXT    NOT NULL PRIMARY KEY,
    seq        INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Alerts whose cause has not gone: `subject` is of whom, '' where it is the proxy itself.
CREATE TABLE episode (
    kind     TEXT    NOT NULL,
    subject  TEXT    NOT NULL,
    began_us INTEGER NOT NULL,
    last_us  INTEGER NOT NULL,
    PRIMARY KEY (kind, subject)
) STRICT, WITHOUT ROWID;

-- From which day on (of acceptance, UTC) all rows are here: retention has deleted some of those before. One row.
CREATE TABLE retained (
    only      INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    since_day TEXT    NOT NULL
) STRICT;

-- Renamings that stand in `renamed` no more, because the earlier caller is there again: what it came to before is tallied
-- under the one that it became then.
CREATE TABLE parted (
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    PRIMARY KEY (old, new)
) STRICT, WITHOUT ROWID;
