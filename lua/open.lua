-- Puts a sale's rebuilt state in the place of what is there, in one step.
--
-- KEYS   1 state, 2 queue, 3 the state that was built, 4 the queue that was built; one hash tag
-- ARGV   1 the epoch, 2 when the keys expire (unix seconds): a backstop, long after the sale's end
-- Reply  'K' opened, 'E <epoch>' a newer epoch is there, 'O' this epoch sells there already, 'N' nothing of this epoch
--        was built; nothing was changed by the last three
-- Holds  the state sells from now on, with free + held + purchased = items; what sells is never replaced under its
--        own epoch: an instance that was frozen between building and opening has built an old state. What is no state at all
--        (another type, an epoch that no ledger gives out), or another ledger's, is replaced

local there = {}
if redis.call('TYPE', KEYS[1]).ok == 'hash' then there = redis.call('HMGET', KEYS[1], 'epoch', 'status', 'ledger') end
local ledger = redis.call('HGET', KEYS[3], 'ledger')
if there[3] and ledger and there[3] ~= ledger then there = {} end
local newer = there[1] and tonumber(there[1])
if newer and newer > tonumber(ARGV[1]) and newer <= 2147483647 then return 'E ' .. there[1] end
if there[1] == ARGV[1] and there[2] == 'selling' then return 'O' end
if redis.call('HGET', KEYS[3], 'epoch') ~= ARGV[1] then return 'N' end
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('RENAME', KEYS[3], KEYS[1])
redis.call('EXPIREAT', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('RENAME', KEYS[4], KEYS[2])
  redis.call('EXPIREAT', KEYS[2], ARGV[2])
end
return 'K'
