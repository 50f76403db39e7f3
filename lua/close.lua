#!lua flags=allow-oom
-- Stops a sale's state from selling: it is about to be rebuilt under a newer epoch.
--
-- KEYS   1 the sale's state (hash)
-- ARGV   1 the newer epoch, 2 when the key expires (unix seconds), if there was none, 3 the ledger's identity, or ''
-- Reply  'K' closed, 'E <epoch>' this epoch or a newer one is there; nothing was changed then
-- Holds  a script that is called with an older epoch changes nothing from now on. A state that is missing is closed
--        too, so that a late opener of an older epoch is refused. A key of another type, a state with an epoch that no ledger gives
--        out, and a state of another ledger are replaced. Runs although memory is short, since the rebuild that it begins frees memory

local there
if redis.call('TYPE', KEYS[1]).ok == 'hash' then
  local ledger
  there, ledger = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'ledger'))
  if there and not (string.match(there, '^%d+$') and tonumber(there) <= 2147483647) then there = nil end
  if ledger and ARGV[3] ~= '' and ledger ~= ARGV[3] then
    redis.call('UNLINK', KEYS[1])
    there = nil
  end
else
  redis.call('UNLINK', KEYS[1])
end
if there and tonumber(there) >= tonumber(ARGV[1]) then return 'E ' .. there end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'status', 'closed')
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'ledger', ARGV[3]) end
if not there then redis.call('EXPIREAT', KEYS[1], ARGV[2]) end
return 'K'
