-- Schema version 3: when holds expire and were purchased, a summary of each sale, and joins by code in milliseconds.

-- The grouping by the key changes no row. It keeps SQLite from merging a view into the query around it: a join by code
-- then builds an index of the view's codes for the moment. Merged, the code is no column, so each row of the one side was
-- compared with each of the other, 48 s for 10,000 rows. A condition on sale_id still reaches the key of the table.
DROP VIEW checkout_attempts;
CREATE VIEW checkout_attempts AS
-- One row a checkout. Times are ISO 8601 text in UTC with milliseconds.
SELECT lower(hex(h.code)) AS code, -- as POST /purchase takes it
       h.user_id, h.sale_id, h.item_id,
       strftime('%Y-%m-%dT%H:%M:%fZ', h.created_at / 1000.0, 'unixepoch') AS created_at,
       p.hold IS NOT NULL AS used, -- 1 once the hold was purchased
       strftime('%Y-%m-%dT%H:%M:%fZ', h.expires_at / 1000.0, 'unixepoch') AS expires_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', p.created_at / 1000.0, 'unixepoch') AS purchased_at -- NULL until then
FROM ledger_holds h LEFT JOIN ledger_purchases p ON p.sale_id = h.sale_id AND p.hold = h.hold
GROUP BY h.sale_id, h.hold;

DROP VIEW purchases;
CREATE VIEW purchases AS
-- One row a purchase. `created_at` and `purchased_at` are the same moment.
SELECT lower(hex(code)) AS code, user_id, sale_id, item_id,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch') AS purchased_at
FROM ledger_purchases
GROUP BY sale_id, hold;

CREATE VIEW sale_summary AS
-- One row a sale, those that were opened ahead included. A sale's id is its start in unix seconds.
SELECT s.sale_id,
       s.items, -- the stock
       (SELECT count(*) FROM ledger_holds h WHERE h.sale_id = s.sale_id) AS holds, -- all checkouts that there ever were
       (SELECT count(*) FROM ledger_purchases p WHERE p.sale_id = s.sale_id) AS purchases,
       (SELECT count(*) FROM ledger_holds h
        WHERE h.sale_id = s.sale_id AND h.expires_at <= (julianday('now') - 2440587.5) * 86400000.0
          AND NOT EXISTS (SELECT 1 FROM ledger_purchases p WHERE p.sale_id = h.sale_id AND p.hold = h.hold)
       ) AS expired, -- holds that ended without a purchase
       (SELECT count(DISTINCT h.user_id) FROM ledger_holds h WHERE h.sale_id = s.sale_id) AS users, -- who checked out
       (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', min(p.created_at) / 1000.0, 'unixepoch') FROM ledger_purchases p
        WHERE p.sale_id = s.sale_id) AS first_purchase_at,
       (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', max(p.created_at) / 1000.0, 'unixepoch') FROM ledger_purchases p
        WHERE p.sale_id = s.sale_id) AS last_purchase_at
FROM sales s;
