-- Gives a sale that has not begun the terms that the ledger has for it.
--
-- KEYS   1 the sale's state (hash)
-- ARGV   1 the epoch, 2 the latest that the clock may show (unix ms), 3 items, 4 limit, 5 hold time (ms)
-- Reply  'K' it has them, 'T <now>' it has begun, or has holds
--        'N', 'E <epoch>', 'C <status>' as in checkout.lua; nothing was changed by any but 'K'
-- Holds  free + held + purchased = items; the terms of a sale that has begun do not change

local have = redis.call('HMGET', KEYS[1], 'epoch', 'status', 'start', 'clock', 'taken', 'purchased', 'end')
if not have[1] then return 'N' end
if have[1] ~= ARGV[1] then return 'E ' .. have[1] end
if have[2] ~= 'selling' then return 'C ' .. (have[2] or '') end
local now = sale_time(tonumber(have[4]), nil, tonumber(have[7]), tonumber(ARGV[2]))
if now >= tonumber(have[3]) or have[5] ~= '0' or have[6] ~= '0' then return 'T ' .. now end
redis.call('HSET', KEYS[1], 'items', ARGV[3], 'free', ARGV[3], 'limit', ARGV[4], 'hold', ARGV[5])
return 'K'
