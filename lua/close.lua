-- Stops a sale's state from selling: it is about to be rebuilt under a newer epoch.
--
-- KEYS   1 the sale's state (hash)
-- ARGV   1 the newer epoch
-- Reply  'K' closed, 'E <epoch>' this epoch or a newer one is there, 'N' no state; nothing was changed by the last two
-- Holds  whoever calls a script with an older epoch changes nothing from now on

local there = redis.call('HGET', KEYS[1], 'epoch')
if not there then return 'N' end
if tonumber(there) >= tonumber(ARGV[1]) then return 'E ' .. there end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'status', 'closed')
return 'K'
