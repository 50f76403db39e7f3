-- Schema version 1, for Postgres 12 or later. Never change this file: add a migration with the next number.
-- A database of this version has no table that says so: it is recognised by the tables and views below.
-- Reports read the views `checkout_attempts` and `purchases`; the tables beneath belong to the service.
-- Needs the rights to create tables here and temporary tables in the database.

-- A sale's terms, fixed when it is opened. Its id is its start in unix seconds.
CREATE TABLE IF NOT EXISTS sales (
    sale_id    bigint      PRIMARY KEY CHECK (sale_id >= 0),
    items      bigint      NOT NULL CHECK (items >= 0),
    user_limit bigint      NOT NULL CHECK (user_limit >= 0),
    hold_ms    bigint      NOT NULL CHECK (hold_ms >= 0),
    starts_at  timestamptz NOT NULL CHECK (starts_at >= 'epoch'),
    ends_at    timestamptz NOT NULL CHECK (ends_at >= starts_at AND isfinite(ends_at)),
    opened     boolean     NOT NULL DEFAULT false
);

-- The key is the hold's number, not the code: rows then arrive in the order of their index, which halves the cost.
CREATE TABLE IF NOT EXISTS ledger_holds (
    sale_id    bigint      NOT NULL,
    hold       bigint      NOT NULL,
    code       bytea       NOT NULL,
    user_id    text        NOT NULL,
    item_id    text        NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (sale_id, hold)
);

-- No foreign key to the holds: after a lost record either row may be alone.
CREATE TABLE IF NOT EXISTS ledger_purchases (
    sale_id    bigint      NOT NULL,
    hold       bigint      NOT NULL,
    code       bytea       NOT NULL,
    user_id    text        NOT NULL,
    item_id    text        NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (sale_id, hold)
);

-- Facts that were answered to a shopper but no longer fit their sale: for a human to settle.
CREATE TABLE IF NOT EXISTS ledger_misfits (
    kind       text        NOT NULL CHECK (kind IN ('hold', 'purchase')),
    sale_id    bigint      NOT NULL,
    hold       bigint      NOT NULL,
    code       bytea       NOT NULL,
    user_id    text        NOT NULL,
    item_id    text        NOT NULL,
    created_at timestamptz NOT NULL,
    reason     text        NOT NULL,
    noted_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sale_id, hold, kind)
);

-- The epoch in force, one row. `identity` is the Redis that it was opened on, empty until it is.
CREATE TABLE IF NOT EXISTS ledger_fence (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    number   bigint  NOT NULL CHECK (number BETWEEN 1 AND 2147483647),
    identity text    NOT NULL
);
INSERT INTO ledger_fence (number, identity) VALUES (1, '') ON CONFLICT DO NOTHING;

-- The key of all codes, one row, made by the first instance.
CREATE TABLE IF NOT EXISTS ledger_code_key (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    key bytea   NOT NULL CHECK (octet_length(key) = 16)
);

-- One number for each start of an instance, never twice: it is the upper part of every hold's number.
CREATE SEQUENCE IF NOT EXISTS instances AS bigint MINVALUE 1 MAXVALUE 1048575 NO CYCLE;

CREATE OR REPLACE VIEW checkout_attempts AS
SELECT encode(h.code, 'hex') AS code, h.user_id, h.sale_id, h.item_id, h.created_at, p.hold IS NOT NULL AS used
FROM ledger_holds h LEFT JOIN ledger_purchases p ON p.sale_id = h.sale_id AND p.hold = h.hold;

CREATE OR REPLACE VIEW purchases AS
SELECT encode(code, 'hex') AS code, user_id, sale_id, item_id, created_at FROM ledger_purchases;
