-- Redeems a batch of holds, in their order.
--
-- KEYS   1 the sale's state (hash), 2 its queue (list; not read, named so that all scripts of a sale are alike)
-- ARGV   1 the epoch, then a hold number each
-- Reply  'K <now>\n<marks>\n<facts>'  a mark for each hold: P purchased now, A purchased before, I expired,
--          G no such hold; for each P and A a fact '<purchased> <bytes of user> <bytes of item> <user><item>'
--        'N', 'E <epoch>', 'C <status>', 'T <now>' as in checkout.lua; nothing was changed by any of these
-- Holds  free + held + purchased = items; a hold is redeemed once

local state = KEYS[1]
local META = 7
local fields = {'epoch', 'status', 'start', 'end', 'clock', 'held', 'purchased'}
local count = #ARGV - 1
for i = 1, count do fields[META + i] = 'h:' .. ARGV[i + 1] end
local have = redis.call('HMGET', state, unpack(fields))
if not have[1] then return 'N' end
if have[1] ~= ARGV[1] then return 'E ' .. have[1] end
if have[2] ~= 'open' then return 'C ' .. have[2] end
local time = redis.call('TIME')
local now = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(have[5]))
if now < tonumber(have[3]) or now >= tonumber(have[4]) then return 'T ' .. now end

local marks, facts, changed, fresh = {}, {}, {'clock', now}, {}
local bought = 0
for i = 1, count do
  local field = fields[META + i]
  local record = fresh[field] or have[META + i]
  if not record then
    marks[i] = 'G'
  else
    local mark, taken, expires, bought_at, length, rest = string.match(record, '^(%a)(%d+):(%d+):(%d+):(%d+):(.*)$')
    if mark == 'P' then
      marks[i] = 'A'
    elseif mark == 'X' or tonumber(expires) <= now then
      -- The stock takes it back when the queue is looked at.
      marks[i] = 'I'
    else
      marks[i] = 'P'
      bought, bought_at = bought + 1, now
      fresh[field] = 'P' .. taken .. ':' .. expires .. ':' .. now .. ':' .. length .. ':' .. rest
      changed[#changed + 1] = field
      changed[#changed + 1] = fresh[field]
    end
    if marks[i] ~= 'I' then facts[#facts + 1] = bought_at .. ' ' .. length .. ' ' .. (#rest - length) .. ' ' .. rest end
  end
end

if bought > 0 then
  for _, value in ipairs({'held', have[6] - bought, 'purchased', have[7] + bought}) do changed[#changed + 1] = value end
end
redis.call('HSET', state, unpack(changed))
return 'K ' .. now .. '\n' .. table.concat(marks) .. '\n' .. table.concat(facts)
