-- Schema version 6: a sale's state in Redis has its holds in chunks. Nothing changes here, but programs of earlier versions cannot read
-- such a state, and would build theirs in its place: `compatible_from` is 6.

-- An instance that is a member of an epoch keeps one of the first two locks, and one that recovers a sale keeps the third. Each has taken a
-- number of `instances` before. An instance that has not joined yet keeps none.
DO $$
BEGIN
    IF (SELECT is_called FROM instances) AND EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND classid::bigint IN (1718812674, 1718812676, 1718812675)
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) THEN
        RAISE EXCEPTION 'instances of an earlier version are running: stop all of them before the first one of this version starts';
    END IF;
END
$$;
