-- Redeems a batch of holds, in their order.
--
-- KEYS   1 the sale's state (hash), 2 its queue (list; not read, named so that all scripts of a sale are alike)
-- ARGV   1 the epoch, 2 the latest that the clock may show (unix ms), then for each hold '<slot><chunk>' (see chunk.lua)
-- Reply  'K <now>\n<marks>\n<facts>'  a mark for each hold: P purchased now, A purchased before, I expired,
--          G no such hold; for each P the slot's entry (see chunk.lua), for each A '<taken><expires><purchased>' (13 digits each) and
--          the entry (<expires> 0 where only the purchase is known). Of a sale that has ended a hold is A or I, and nothing is changed
--        'N', 'E <epoch>', 'C <status>', 'T <now>' as in checkout.lua; nothing was changed by any of these
-- Fails  where a chunk or its marks cannot be read: nothing was changed
-- Holds  free + held + purchased = items; a hold is redeemed once
--
-- The user's share stays as it is: what a user holds and what a user has purchased count alike for the limit. To tell
-- them apart here makes a purchase a third dearer (3.6 -> 5.1 us of Redis in batches of 32, November 2026, AMD EPYC).
-- So a user who has purchased the limit is told the sale's end only after the hold time of the user's last hold.

local state = KEYS[1]
local argv = ARGV

local META = 8
local fields = {'epoch', 'status', 'start', 'end', 'clock', 'held', 'purchased', 'slewed'}
local count = #argv - 2
for i = 1, count do
  local name = sub(argv[i + 2], 2)
  fields[META + 2 * i - 1], fields[META + 2 * i] = 'c' .. name, 'm' .. name
end
local have = redis.call('HMGET', state, unpack(fields))
if not have[1] then return 'N' end
if have[1] ~= argv[1] then return 'E ' .. have[1] end
if have[2] ~= 'selling' then return 'C ' .. (have[2] or '') end
local ends = tonumber(have[4])
local now, slewed = sale_time(tonumber(have[5]), have[8], ends, tonumber(argv[2]))
if now < tonumber(have[3]) then return 'T ' .. now end
local over = now >= ends

local clock = string.format('%d', now)
local marks, facts, fresh, bought = {}, {}, {}, 0
for i = 1, count do
  local chunk, field = have[META + 2 * i - 1], fields[META + 2 * i]
  local done, slot = fresh[field] or have[META + 2 * i], sub(argv[i + 2], 1, 1)
  local at, last
  if chunk then
    -- A function of its own for this makes a purchase a tenth dearer.
    at = 27
    local user, item = byte(chunk, at, at + 1)
    for _ = 98, byte(slot) do
      if not item then break end
      at = at + user + item - 62
      user, item = byte(chunk, at, at + 1)
    end
    if item and user > 32 and item > 32 and at + user + item - 63 <= #chunk then
      last = at + user + item - 63
    elseif not item and at == #chunk + 1 or user == 32 and item == 32 then
      at = nil
    else
      error('cannot read a chunk of holds')
    end
  end
  if not at then
    marks[i] = over and 'I' or 'G'
  else
    local expires = sub(chunk, 14, 26)
    local taken, purchased
    -- A letter of a slot is nowhere else in the marks.
    if done and find(done, slot, 1, true) then
      if #done % 15 ~= 0 then error('cannot read the marks of a chunk of holds') end
      taken, expires, purchased = mark_of(done, slot, 'T'), mark_of(done, slot, 'E') or expires, mark_of(done, slot, 'P')
    end
    if purchased then
      marks[i] = 'A'
      facts[#facts + 1] = (taken or sub(chunk, 1, 13)) .. expires .. purchased .. sub(chunk, at, last)
    elseif over or tonumber(expires) <= now then
      -- The item goes back to the stock when a checkout looks at the queue.
      marks[i] = 'I'
    else
      marks[i] = 'P'
      bought = bought + 1
      fresh[field] = (done or '') .. slot .. 'P' .. clock
      facts[#facts + 1] = sub(chunk, at, last)
    end
  end
end

if not over then
  local changed = {'clock', clock}
  if bought > 0 then changed = {'clock', clock, 'held', have[6] - bought, 'purchased', have[7] + bought} end
  local size = #changed
  for field, value in pairs(fresh) do
    changed[size + 1], changed[size + 2] = field, value
    size = size + 2
  end
  if slewed then changed[size + 1], changed[size + 2] = 'slewed', slewed end
  redis.call('HSET', state, unpack(changed))
end
return 'K ' .. clock .. '\n' .. table.concat(marks) .. '\n' .. table.concat(facts)
