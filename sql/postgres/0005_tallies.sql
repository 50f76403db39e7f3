-- Schema version 5: how many rows each transaction has added, so that reconciliation counts these numbers and not the rows again.

-- Not logged: after a crash the table is empty, and reconciliation counts rows until it has filled again.
CREATE UNLOGGED TABLE ledger_tallies (
    sale_id   bigint    NOT NULL,
    last_ms   bigint    NOT NULL,
    moments   bigint[]  NOT NULL,
    holds     integer[] NOT NULL,
    purchases integer[] NOT NULL
);
CREATE INDEX ledger_tallies_key ON ledger_tallies (sale_id, last_ms);

-- A role that writes holds and does not own the tables needs the new one too.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) acl
        WHERE c.oid = 'ledger_holds'::regclass AND acl.grantee <> c.relowner AND acl.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON ledger_tallies TO %s', granted.grantee);
    END LOOP;
END
$$;

COMMENT ON TABLE ledger_tallies IS 'Belongs to the service. How many rows a transaction added to a sale; kept for minutes.';
COMMENT ON COLUMN ledger_tallies.last_ms IS 'The last of the moments.';
COMMENT ON COLUMN ledger_tallies.moments IS 'The moments at which the rows were decided, in unix milliseconds: their created_at.';
COMMENT ON COLUMN ledger_tallies.holds IS 'How many rows of ledger_holds the transaction added of each moment.';
COMMENT ON COLUMN ledger_tallies.purchases IS 'The same for ledger_purchases.';
