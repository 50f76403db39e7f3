-- Schema version 2: the database says which version it has, and which ledger it is.

-- One row. `version` is the number of the last migration. A program works with this database if its own last migration
-- is `compatible_from` or later: a migration raises it only if older programs cannot go on beside it.
CREATE TABLE ledger_schema (
    one             boolean PRIMARY KEY DEFAULT true CHECK (one),
    version         bigint  NOT NULL CHECK (version >= 2),
    compatible_from bigint  NOT NULL CHECK (compatible_from BETWEEN 1 AND version)
);
INSERT INTO ledger_schema (version, compatible_from) VALUES (2, 1);

-- What tells this ledger from every other one: 32 random hex digits, one row, made by the first instance that asks.
-- A restored backup keeps it.
CREATE TABLE ledger_identity (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id  text    NOT NULL CHECK (id ~ '^[0-9a-f]{32}$')
);
