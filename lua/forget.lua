#!lua flags=allow-oom
-- Removes the holds and the queue of a closed state. The ledger has all of these facts by now. The epoch and the status
-- stay, so that calls of an older epoch are refused, and so does the sale's time: a repeated rebuild needs it, and the
-- ledger's rows may show an earlier time (a hold that offer.lua put back has its first expiry there).
--
-- KEYS   1 the sale's state (hash), 2 its queue (list); one hash tag
-- ARGV   1 the epoch that it was closed for, 2 when the key expires (unix seconds), 3 the ledger's identity,
--        or ''
-- Reply  'K' forgotten, 'N' no state, 'E <epoch>' it is not closed for this epoch; nothing was changed by the last two
-- Holds  the memory of the removed holds is free for the state that is built next

local there = redis.call('HMGET', KEYS[1], 'epoch', 'status', 'clock')
if not there[1] then return 'N' end
if there[1] ~= ARGV[1] or there[2] ~= 'closed' then return 'E ' .. there[1] end
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'status', 'closed')
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'ledger', ARGV[3]) end
if there[3] then redis.call('HSET', KEYS[1], 'clock', there[3]) end
redis.call('EXPIREAT', KEYS[1], ARGV[2])
return 'K'
