-- Schema version 4: the table of records that do not fit their sale is named quarantined_records.

ALTER TABLE ledger_misfits RENAME TO quarantined_records;
ALTER TABLE quarantined_records RENAME CONSTRAINT ledger_misfits_pkey TO quarantined_records_pkey;
ALTER TABLE quarantined_records RENAME CONSTRAINT ledger_misfits_kind_check TO quarantined_records_kind_check;

-- Instances of earlier versions insert into the former name while they run beside newer ones.
CREATE VIEW ledger_misfits AS
SELECT kind, sale_id, hold, code, user_id, item_id, created_at, reason, noted_at FROM quarantined_records;

-- A role that may use the tables and does not own them keeps its rights under the former name.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT acl.privilege_type AS privilege,
               CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) acl
        WHERE c.oid = 'quarantined_records'::regclass AND acl.grantee <> c.relowner
            AND acl.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON ledger_misfits TO %s', granted.privilege, granted.grantee);
    END LOOP;
END
$$;

COMMENT ON TABLE quarantined_records IS 'Records that were answered to a shopper and do not fit their sale any more: for an operator to settle.';
COMMENT ON COLUMN quarantined_records.kind IS 'hold or purchase.';
COMMENT ON COLUMN quarantined_records.hold IS 'The hold''s number: 20 bits of the instance, 43 bits of its counter.';
COMMENT ON COLUMN quarantined_records.code IS 'The code: sale, number and check bits, encrypted with the key in ledger_code_key.';
COMMENT ON COLUMN quarantined_records.created_at IS 'When the hold began, or when the purchase was made.';
COMMENT ON COLUMN quarantined_records.reason IS 'Why the record does not fit.';
COMMENT ON COLUMN quarantined_records.noted_at IS 'When that was found.';
COMMENT ON VIEW ledger_misfits IS 'The former name of quarantined_records, for instances of earlier versions.';
