-- Schema version 1. Never change this file: add a migration with the next number.
-- Times in tables are unix milliseconds; the views show them as ISO 8601 text in UTC with milliseconds.

CREATE TABLE meta (
    only           INTEGER PRIMARY KEY CHECK (only = 1),
    schema_version INTEGER NOT NULL
) STRICT;
INSERT INTO meta VALUES (1, 1);

-- The key that all codes are minted with.
CREATE TABLE code_key (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    key  BLOB NOT NULL CHECK (length(key) = 16)
) STRICT;

-- The last instance number given out: one a start.
CREATE TABLE instances (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    last INTEGER NOT NULL
) STRICT;
INSERT INTO instances VALUES (1, 0);

-- Terms are fixed once: the first row of a sale stays.
CREATE TABLE sales (
    sale_id    INTEGER PRIMARY KEY,
    items      INTEGER NOT NULL,
    user_limit INTEGER NOT NULL,
    hold_ms    INTEGER NOT NULL,
    starts_at  INTEGER NOT NULL,
    ends_at    INTEGER NOT NULL,
    opened     INTEGER NOT NULL DEFAULT 0 CHECK (opened IN (0, 1))
) STRICT;

-- One row a checkout. Numbers rise, so rows are added at the end of the tree.
CREATE TABLE ledger_holds (
    sale_id    INTEGER NOT NULL,
    hold       INTEGER NOT NULL,
    code       BLOB    NOT NULL,
    user_id    TEXT    NOT NULL,
    item_id    TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (sale_id, hold)
) STRICT, WITHOUT ROWID;

-- One row a purchase. It repeats the hold's words: either row may be alone.
CREATE TABLE ledger_purchases (
    sale_id    INTEGER NOT NULL,
    hold       INTEGER NOT NULL,
    code       BLOB    NOT NULL,
    user_id    TEXT    NOT NULL,
    item_id    TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (sale_id, hold)
) STRICT, WITHOUT ROWID;

-- `code` reads as /purchase takes it; `used` is 1 once the hold was purchased, else 0.
CREATE VIEW checkout_attempts AS
SELECT lower(hex(h.code)) AS code, h.user_id, h.sale_id, h.item_id,
       strftime('%Y-%m-%dT%H:%M:%fZ', h.created_at / 1000.0, 'unixepoch') AS created_at,
       EXISTS (SELECT 1 FROM ledger_purchases p WHERE p.sale_id = h.sale_id AND p.hold = h.hold) AS used
FROM ledger_holds h;

CREATE VIEW purchases AS
SELECT lower(hex(code)) AS code, user_id, sale_id, item_id,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch') AS created_at
FROM ledger_purchases;
