-- Offers a sale the records of an instance that was late: it decided them under an older epoch.
--
-- KEYS   1 the sale's state (hash), 2 its queue (list); one hash tag
-- ARGV   1 the epoch, 2 the latest that the clock may show (unix ms), then for each record: 'H' or 'P', '<slot><chunk>' (see
--        chunk.lua), user, item, taken (or 0), expires (or 0), purchased (or 0); times in unix ms, 13 digits
-- Reply  'K <marks>'  a mark for each record: F it fits (it is in the state now, or was), M it does not
--        'N', 'E <epoch>', 'C <status>', 'T <now>', 'Q' as in checkout.lua; nothing was changed by any of these. For a sale
--        that has ended the keeper decides by the ledger's rows: no instance rebuilds its state, which may lack some
-- Fails  where a chunk, a share or an entry of the queue cannot be read: only the time may have been changed, and items of expired
--        holds taken back
-- Holds  free + held + purchased = items; `taken` counts the holds whose checkout is known; no user gets above the
--        limit; a hold that is put back gets the whole hold time again, so that the queue stays in the order of expiry

local state, queue = KEYS[1], KEYS[2]
local terms = redis.call('HMGET', state, 'epoch', 'status', 'limit', 'hold', 'end', 'clock', 'queue', 'slewed')
if not terms[1] then return 'N' end
if terms[1] ~= ARGV[1] then return 'E ' .. terms[1] end
if terms[2] ~= 'selling' then return 'C ' .. (terms[2] or '') end
local limit, ends = tonumber(terms[3]), tonumber(terms[5])
local now, slewed = sale_time(tonumber(terms[6]), terms[8], ends, tonumber(ARGV[2]))
if now >= ends then return 'T ' .. now end
local length = tonumber(terms[7])
if redis.call('LLEN', queue) ~= length then return 'Q' end
local renewed = tostring(math.min(now + tonumber(terms[4]), ends))

-- Takes one of the free items for `user`, for a hold that lasts until `till` if it is one; false if there is none or the
-- user is at the limit.
local function take(user, till)
  local have = redis.call('HMGET', state, 'free', 'u:' .. user)
  local share = have[2] or '00000000000000'
  local items = items_of(share)
  if tonumber(have[1]) <= 0 or items >= limit then return false end
  redis.call('HINCRBY', state, 'free', -1)
  redis.call('HSET', state, 'u:' .. user, (till or sub(share, 1, 13)) .. (items + 1))
  return true
end

-- Whether the slot (counted from 0) has a hold. Fails where the chunk cannot be read.
local function has_entry(chunk, nth)
  local at = 27
  local user, item = byte(chunk, at, at + 1)
  for _ = 1, nth do
    if not item then break end
    at = at + user + item - 62
    user, item = byte(chunk, at, at + 1)
  end
  if not item and at == #chunk + 1 or user == 32 and item == 32 then return false end
  if not item or user < 33 or item < 33 or at + user + item - 63 > #chunk then error('cannot read a chunk of holds') end
  return true
end

-- The chunk with `entry` in the place of a slot that has no hold.
local function with_entry(chunk, nth, entry)
  local at = 27
  for _ = 1, nth do
    if at > #chunk then chunk = chunk .. '  ' end
    local user, item = byte(chunk, at, at + 1)
    at = at + user + item - 62
  end
  return sub(chunk, 1, at - 1) .. entry .. sub(chunk, at + 2)
end

-- The marks with this one, in the place of the slot's earlier one of the kind.
local function with_mark(marks, slot, kind, digits)
  local mark, at = slot .. kind .. digits, find(marks, slot .. kind, 1, true)
  if not at then return marks .. mark end
  return sub(marks, 1, at - 1) .. mark .. sub(marks, at + 15)
end

-- What is known of the slot: whether it has a hold, when that expires (0 where only the purchase is known) and was purchased.
local function look(name, slot)
  local have = redis.call('HMGET', state, 'c' .. name, 'm' .. name)
  local chunk, marks = have[1] or string.rep('0', 26), have[2] or ''
  if #chunk < 26 or #marks % 15 ~= 0 then error('cannot read a chunk of holds') end
  local nth = byte(slot) - 97
  local known = {name = name, slot = slot, nth = nth, chunk = chunk, marks = marks}
  known.has_hold = has_entry(chunk, nth)
  known.expires = tonumber(mark_of(marks, slot, 'E') or sub(chunk, 14, 26))
  known.purchased = mark_of(marks, slot, 'P')
  return known
end

-- Writes these marks, in pairs of a kind and its digits, and the slot's entry where there was none.
local function write(known, user, item, ...)
  local marks, added = known.marks, {...}
  for i = 1, #added, 2 do marks = with_mark(marks, known.slot, added[i], added[i + 1]) end
  redis.call('HSET', state, 'm' .. known.name, marks)
  if not known.has_hold then
    local entry = char(32 + #user, 32 + #item) .. user .. item
    redis.call('HSET', state, 'c' .. known.name, with_entry(known.chunk, known.nth, entry))
  end
end

local function offer_hold(known, user, item, taken, expires)
  if known.has_hold then
    -- Its purchase may have come alone.
    if known.purchased and known.expires == 0 then
      write(known, user, item, 'E', expires, 'T', taken)
      redis.call('HINCRBY', state, 'taken', 1)
    end
    return true
  end
  if tonumber(expires) <= now then
    write(known, user, item, 'E', expires, 'T', taken)
  elseif take(user, renewed) then
    redis.call('RPUSH', queue, renewed .. ':' .. known.name .. ':' .. known.slot)
    redis.call('EXPIREAT', queue, math.floor(ends / 1000) + 604800)
    write(known, user, item, 'E', renewed, 'T', taken)
    redis.call('HINCRBY', state, 'queue', 1)
    redis.call('HINCRBY', state, 'held', 1)
  else
    return false
  end
  redis.call('HINCRBY', state, 'taken', 1)
  return true
end

local function offer_purchase(known, user, item, purchased)
  if known.purchased then return true end
  if known.has_hold and known.expires > now then
    redis.call('HINCRBY', state, 'held', -1)
  elseif not take(user) then
    return false
  end
  if known.has_hold then
    write(known, user, item, 'P', purchased)
  else
    write(known, user, item, 'P', purchased, 'E', '0000000000000')
  end
  redis.call('HINCRBY', state, 'purchased', 1)
  return true
end

-- Everything that can fail is tried before the first write. The time is written first: a hold that has expired has no other mark, so
-- an item that came back under a time that the state forgot would be sold twice.
for at = 3, #ARGV, 7 do
  look(sub(ARGV[at + 1], 2), sub(ARGV[at + 1], 1, 1))
  local share = redis.call('HGET', state, 'u:' .. ARGV[at + 2])
  if share then items_of(share) end
end
redis.call('HSET', state, 'clock', now)
if slewed then redis.call('HSET', state, 'slewed', slewed) end

-- All items of holds that have expired come back first: below, a hold whose time has passed holds no item. The caller has had most
-- of them taken back before.
while length > 0 do
  local back = {}
  local dropped, head = settle(state, redis.call('LRANGE', queue, 0, BOUND - 1), now, back)
  if dropped == 0 then break end
  local shares = back[1] and redis.call('HMGET', state, unpack(back))
  for i in ipairs(back) do items_of(shares[i]) end
  redis.call('LTRIM', queue, dropped, -1)
  length = length - dropped
  redis.call('HSET', state, 'queue', length)
  for _, who in ipairs(back) do
    local share = redis.call('HGET', state, who)
    redis.call('HSET', state, who, sub(share, 1, 13) .. (items_of(share) - 1))
  end
  if back[1] then
    redis.call('HINCRBY', state, 'free', #back)
    redis.call('HINCRBY', state, 'held', -#back)
  end
  if head then break end
end

local marks = {}
for at = 3, #ARGV, 7 do
  local user, item, taken, expires, purchased = unpack(ARGV, at + 2, at + 6)
  local known, fits = look(sub(ARGV[at + 1], 2), sub(ARGV[at + 1], 1, 1)), nil
  if ARGV[at] == 'H' then
    fits = offer_hold(known, user, item, taken, expires)
  else
    fits = offer_purchase(known, user, item, purchased)
  end
  marks[#marks + 1] = fits and 'F' or 'M'
end
return 'K ' .. table.concat(marks)
