-- Schema version 3: when holds expire and were purchased, a summary of each sale, and comments on what there is.

CREATE OR REPLACE VIEW checkout_attempts AS
SELECT encode(h.code, 'hex') AS code, h.user_id, h.sale_id, h.item_id, h.created_at, p.hold IS NOT NULL AS used,
       h.expires_at, p.created_at AS purchased_at
FROM ledger_holds h LEFT JOIN ledger_purchases p ON p.sale_id = h.sale_id AND p.hold = h.hold;

CREATE OR REPLACE VIEW purchases AS
SELECT encode(code, 'hex') AS code, user_id, sale_id, item_id, created_at, created_at AS purchased_at
FROM ledger_purchases;

-- A condition on sale_id reaches the keys of both tables: the summary of one sale reads the rows of that sale.
CREATE VIEW sale_summary AS
SELECT s.sale_id, s.items, h.holds, p.purchases, h.expired, h.users, p.first_purchase_at, p.last_purchase_at
FROM sales s
CROSS JOIN LATERAL (
    SELECT count(*) AS holds, count(*) FILTER (WHERE b.hold IS NULL AND a.expires_at <= now()) AS expired,
           count(DISTINCT a.user_id) AS users
    FROM ledger_holds a LEFT JOIN ledger_purchases b ON b.sale_id = a.sale_id AND b.hold = a.hold
    WHERE a.sale_id = s.sale_id
) h
CROSS JOIN LATERAL (
    SELECT count(*) AS purchases, min(created_at) AS first_purchase_at, max(created_at) AS last_purchase_at
    FROM ledger_purchases WHERE sale_id = s.sale_id
) p;

COMMENT ON VIEW checkout_attempts IS 'One row for each checkout that was granted. For reports.';
COMMENT ON COLUMN checkout_attempts.code IS 'The hold''s code, as POST /purchase takes it: 32 hex digits.';
COMMENT ON COLUMN checkout_attempts.user_id IS 'The user who checked out, as sent.';
COMMENT ON COLUMN checkout_attempts.sale_id IS 'The sale: its start in unix seconds.';
COMMENT ON COLUMN checkout_attempts.item_id IS 'The item, as sent.';
COMMENT ON COLUMN checkout_attempts.created_at IS 'When the hold began.';
COMMENT ON COLUMN checkout_attempts.used IS 'Whether the hold was purchased.';
COMMENT ON COLUMN checkout_attempts.expires_at IS 'When the hold ends, unless it is purchased before.';
COMMENT ON COLUMN checkout_attempts.purchased_at IS 'When the hold was purchased; null until then.';

COMMENT ON VIEW purchases IS 'One row for each purchase. For reports.';
COMMENT ON COLUMN purchases.code IS 'The code that was redeemed: 32 hex digits.';
COMMENT ON COLUMN purchases.user_id IS 'The user who checked out, as sent.';
COMMENT ON COLUMN purchases.sale_id IS 'The sale: its start in unix seconds.';
COMMENT ON COLUMN purchases.item_id IS 'The item, as sent.';
COMMENT ON COLUMN purchases.created_at IS 'When the purchase was made.';
COMMENT ON COLUMN purchases.purchased_at IS 'The same moment as created_at.';

COMMENT ON VIEW sale_summary IS 'One row for each sale, those that were opened ahead included. For reports.';
COMMENT ON COLUMN sale_summary.sale_id IS 'The sale: its start in unix seconds.';
COMMENT ON COLUMN sale_summary.items IS 'The sale''s stock.';
COMMENT ON COLUMN sale_summary.holds IS 'Checkouts that were granted, whatever became of them.';
COMMENT ON COLUMN sale_summary.purchases IS 'Purchases.';
COMMENT ON COLUMN sale_summary.expired IS 'Holds that ended without a purchase.';
COMMENT ON COLUMN sale_summary.users IS 'Different users who checked out.';
COMMENT ON COLUMN sale_summary.first_purchase_at IS 'When the first purchase was made; null if there is none.';
COMMENT ON COLUMN sale_summary.last_purchase_at IS 'When the last purchase was made; null if there is none.';

COMMENT ON TABLE sales IS 'Terms of sales, fixed when a sale is planned.';
COMMENT ON COLUMN sales.sale_id IS 'The start in unix seconds.';
COMMENT ON COLUMN sales.items IS 'The stock.';
COMMENT ON COLUMN sales.user_limit IS 'How many items one user may hold and have purchased.';
COMMENT ON COLUMN sales.hold_ms IS 'How long a hold lasts, in milliseconds.';
COMMENT ON COLUMN sales.starts_at IS 'From when on the sale sells.';
COMMENT ON COLUMN sales.ends_at IS 'From when on it does not.';
COMMENT ON COLUMN sales.opened IS 'Whether the sale was opened in Redis: from then on a missing state is a loss.';

COMMENT ON TABLE ledger_holds IS 'Belongs to the service. Reports read the view checkout_attempts.';
COMMENT ON COLUMN ledger_holds.hold IS 'The hold''s number: 20 bits of the instance, 43 bits of its counter.';
COMMENT ON COLUMN ledger_holds.code IS 'The code: sale, number and check bits, encrypted with the key in ledger_code_key.';
COMMENT ON TABLE ledger_purchases IS 'Belongs to the service. Reports read the view purchases.';
COMMENT ON COLUMN ledger_purchases.hold IS 'The number of the hold that was purchased.';
COMMENT ON COLUMN ledger_purchases.code IS 'The code: sale, number and check bits, encrypted with the key in ledger_code_key.';
COMMENT ON TABLE ledger_misfits IS 'Facts that were answered to a shopper and no longer fit their sale: for an operator to settle.';
COMMENT ON COLUMN ledger_misfits.kind IS 'hold or purchase.';
COMMENT ON COLUMN ledger_misfits.reason IS 'Why it did not fit.';
COMMENT ON COLUMN ledger_misfits.noted_at IS 'When that was found.';
COMMENT ON TABLE ledger_fence IS 'Belongs to the service. The epoch in force, and the Redis that it was opened on.';
COMMENT ON COLUMN ledger_fence.identity IS 'Run id and replication id of that Redis; empty while the epoch is being opened or closed.';
COMMENT ON TABLE ledger_code_key IS 'Secret. The key of all codes: with it, codes can be forged.';
COMMENT ON TABLE ledger_schema IS 'Belongs to the service. The version of this schema.';
COMMENT ON COLUMN ledger_schema.version IS 'The last migration that was applied.';
COMMENT ON COLUMN ledger_schema.compatible_from IS 'The oldest program, by its last migration, that works with this schema.';
COMMENT ON TABLE ledger_identity IS 'Belongs to the service. What tells this ledger from every other one.';
COMMENT ON SEQUENCE instances IS 'Belongs to the service. One number for each start of an instance.';
