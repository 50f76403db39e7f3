-- Offers a sale the records of an instance that was late: it decided them under an older epoch.
--
-- KEYS   1 the sale's state (hash), 2 its queue (list); one hash tag
-- ARGV   1 the epoch, 2 the latest that the clock may show (unix ms), then for each record: 'H' or 'P', hold number, user, item, taken (or 0), expires (or 0),
--        purchased (or 0); times in unix ms
-- Reply  'K <marks>'  a mark for each record: F it fits (it is in the state now, or was), M it does not
--        'N', 'E <epoch>', 'C <status>', 'T <now>', 'Q' as in checkout.lua; nothing was changed by any of these. Facts of a
--        sale that has ended are judged by the ledger: no instance rebuilds its state, which may lack some
-- Holds  free + held + purchased = items; `taken` counts the holds whose checkout is known; no user gets above the
--        limit; a hold that is put back gets the whole hold time again, so that the queue stays in the order of expiry

local state, queue = KEYS[1], KEYS[2]
local terms = redis.call('HMGET', state, 'epoch', 'status', 'limit', 'hold', 'end', 'clock', 'queue', 'slewed')
if not terms[1] then return 'N' end
if terms[1] ~= ARGV[1] then return 'E ' .. terms[1] end
if terms[2] ~= 'open' then return 'C ' .. terms[2] end
local limit, ends = tonumber(terms[3]), tonumber(terms[5])
local now, slewed = sale_time(tonumber(terms[6]), terms[8], ends, tonumber(ARGV[2]))
if now >= ends then return 'T ' .. now end
if redis.call('LLEN', queue) ~= tonumber(terms[7]) then return 'Q' end
local renewed = math.min(now + tonumber(terms[4]), ends)

-- Takes one of the free items for `user`, for a hold that lasts until `till` if it is one; false if there is none or the
-- user is at the limit.
local function take(user, till)
  local have = redis.call('HMGET', state, 'free', 'u:' .. user)
  local share = have[2] or '00000000000000'
  local his = tonumber(string.sub(share, 14)) or tonumber(share)
  if tonumber(have[1]) <= 0 or his >= limit then return false end
  redis.call('HINCRBY', state, 'free', -1)
  redis.call('HSET', state, 'u:' .. user, (till or (#share > 13 and string.sub(share, 1, 13)) or ends) .. (his + 1))
  return true
end

local function write(mark, number, taken, expires, purchased, user, item)
  redis.call('HSET', state, 'h:' .. number, mark .. taken .. ':' .. expires .. ':' .. purchased .. ':' .. #user .. ':' .. user .. item)
end

local function offer_hold(number, user, item, taken, expires)
  local record = redis.call('HGET', state, 'h:' .. number)
  if record then
    -- Its purchase may have come alone.
    local bought = string.match(record, '^P%d+:0:(%d+):')
    if bought then
      write('P', number, taken, expires, bought, user, item)
      redis.call('HINCRBY', state, 'taken', 1)
    end
    return true
  end
  if tonumber(expires) <= now then
    write('X', number, taken, expires, 0, user, item)
  elseif take(user, renewed) then
    redis.call('RPUSH', queue, number .. ':' .. renewed .. ':' .. user)
    redis.call('EXPIREAT', queue, math.floor(ends / 1000) + 604800)
    write('H', number, taken, renewed, 0, user, item)
    redis.call('HINCRBY', state, 'queue', 1)
    redis.call('HINCRBY', state, 'held', 1)
  else
    return false
  end
  redis.call('HINCRBY', state, 'taken', 1)
  return true
end

local function offer_purchase(number, user, item, taken, expires, purchased)
  local record = redis.call('HGET', state, 'h:' .. number)
  local mark = record and string.sub(record, 1, 1)
  if mark == 'P' then return true end
  if mark == 'H' then
    redis.call('HINCRBY', state, 'held', -1)
  elseif not take(user) then
    return false
  end
  if record then
    taken, expires = string.match(record, '^%a(%d+):(%d+):')
  end
  write('P', number, taken, expires, purchased, user, item)
  redis.call('HINCRBY', state, 'purchased', 1)
  return true
end

local marks = {}
for at = 3, #ARGV, 7 do
  local number, user, item, taken, expires, purchased = unpack(ARGV, at + 1, at + 6)
  local fits
  if ARGV[at] == 'H' then
    fits = offer_hold(number, user, item, taken, expires)
  else
    fits = offer_purchase(number, user, item, taken, expires, purchased)
  end
  marks[#marks + 1] = fits and 'F' or 'M'
end
redis.call('HSET', state, 'clock', now)
if slewed then redis.call('HSET', state, 'slewed', slewed) end
return 'K ' .. table.concat(marks)
