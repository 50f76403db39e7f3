-- Schema version 2: which ledger this is, and which programs work with it.

-- A program works with this file if its own last migration is `compatible_from` or later: a migration raises it only
-- if older programs cannot work with its result. `schema_version` is the number of the last migration.
ALTER TABLE meta ADD COLUMN compatible_from INTEGER NOT NULL DEFAULT 1;

-- What tells this ledger from every other one: 32 random hex digits, one row, made on the first question.
-- A restored backup keeps it.
CREATE TABLE ledger_identity (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    id   TEXT NOT NULL CHECK (length(id) = 32 AND id NOT GLOB '*[^0-9a-f]*')
) STRICT;
