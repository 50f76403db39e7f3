-- Reads how much a sale has decided, and makes all later decisions count for a later millisecond.
--
-- KEYS   1 the sale's state (hash)
-- ARGV   1 the ledger that asks
-- Reply  the fields clock, taken, purchased, quarantined, ledger and status of the state; each is nil where it is missing
-- Holds  what is decided after this reading is later than the clock that it gives: so the ledger can be asked for all
--        rows up to that clock, and no later row hides a missing one. A state of another ledger is only read. A Redis
--        that takes no writes decides nothing either, so an error of the write is of no consequence

local have = redis.call('HMGET', KEYS[1], 'clock', 'taken', 'purchased', 'quarantined', 'ledger', 'status')
local clock = have[1] and tonumber(have[1])
if clock and have[6] == 'selling' and (not have[5] or have[5] == ARGV[1]) then
  redis.pcall('HSET', KEYS[1], 'clock', clock + 1)
end
return have
