-- Takes an item for each of a batch of checkouts, in their order.
--
-- KEYS   1 the sale's state (hash), 2 its queue (list); one hash tag
-- ARGV   1 the epoch, 2 the latest that the clock may show (unix ms), then for each checkout: hold number, user,
--        '<bytes of user>:<user><item>'
-- Reply  'K <now> <expires> <next>\n<marks>'  times in unix ms; a mark for each checkout:
--          H held until <expires>, S sold out until <next> at least,
--          L the user's limit, B the user's limit and all of it is purchased,
--          A again: more holds may have expired than one call takes back, D the number is taken
--        'N' no state, 'E <epoch>' another epoch, 'C <status>' not selling, 'T <now>' the sale is not on,
--        'Q' the queue is not the one that the state knows; nothing was changed by any of these
-- Fails  where a share or a record cannot be read: nothing was changed
-- Holds  free + held + purchased = items; the queue is in the order of expiry and `queue` is its length;
--        `taken` counts all holds that there ever were
--
-- A hold's record is '<H|P|X><taken>:<expires>:<purchased>:<bytes of user>:<user><item>'
-- (held, purchased, expired), an entry of the queue is '<number>:<expires>:<user>'. A user's share is '<expiry of
-- the last hold, 13 digits><held and purchased items>': a user who is at the limit after that moment has purchased all of
-- it. Before it that is not known (L): purchases would have to read and write the share, which made them a third dearer.

local state, queue = KEYS[1], KEYS[2]
-- Entries taken back in one call. With 512 checkouts the longest unpack is 512 * 4 + 256 * 4 + 12, below Lua's 8,000.
local BOUND = 256

local META = 12
local fields = {'epoch', 'status', 'limit', 'hold', 'start', 'end', 'clock', 'free', 'queue', 'held', 'taken', 'slewed'}
local count = (#ARGV - 2) / 3
for i = 1, count do
  fields[META + 2 * i - 1] = 'u:' .. ARGV[3 * i + 1]
  fields[META + 2 * i] = 'h:' .. ARGV[3 * i]
end
local have = redis.call('HMGET', state, unpack(fields))
if not have[1] then return 'N' end
if have[1] ~= ARGV[1] then return 'E ' .. have[1] end
if have[2] ~= 'open' then return 'C ' .. have[2] end

local limit, ends, free = tonumber(have[3]), tonumber(have[6]), tonumber(have[8])
local now, slewed = sale_time(tonumber(have[7]), have[12], ends, tonumber(ARGV[2]))
if now < tonumber(have[5]) or now >= ends then return 'T ' .. now end
local length = tonumber(have[9])
if redis.call('LLEN', queue) ~= length then return 'Q' end

local counts, shares, fresh, changed, size = {}, {}, {}, {}, 0
local sub = string.sub
local function set(field, value)
  changed[size + 1], changed[size + 2] = field, value
  size = size + 2
end

-- The two parts of a share. One that an earlier version wrote has no expiry. Fails where there is no share, or none that can be
-- read: before the first write.
local function items_of(share) return tonumber(sub(share, 14)) or tonumber(share) or error('cannot read a share') end
local function expiry_of(share) return #share > 13 and sub(share, 1, 13) or ends end

-- What no longer holds an item leaves the queue's head: expired holds, whose items come back, and purchased ones.
-- `head` is the expiry of the first live hold afterwards.
local dropped, again, head, returned = 0, false, nil, 0
local function settle()
  local entries = redis.call('LRANGE', queue, 0, BOUND - 1)
  local names, parsed = {}, {}
  for i, entry in ipairs(entries) do
    local number, expires, user = string.match(entry, '^(%d+):(%d+):(.*)$')
    parsed[i] = {'h:' .. number, tonumber(expires), 'u:' .. user}
    names[2 * i - 1], names[2 * i] = parsed[i][1], parsed[i][3]
  end
  local found = redis.call('HMGET', state, unpack(names))
  for i, entry in ipairs(parsed) do
    local record, user = found[2 * i - 1], entry[3]
    local mark = record and sub(record, 1, 1)
    local held = mark == 'H'
    if not held and mark ~= 'P' and mark ~= 'X' then error('cannot read the record of a queued hold') end
    if held and entry[2] > now then
      head = entry[2]
      return
    end
    if held then
      set(entry[1], 'X' .. sub(record, 2))
      local share = found[2 * i]
      counts[user] = (counts[user] or items_of(share)) - 1
      shares[user] = share
      returned = returned + 1
    end
    dropped = i
  end
  again = dropped < length
end

local first = redis.call('LINDEX', queue, 0)
if first then
  local number, expires = string.match(first, '^(%d+):(%d+):')
  head = tonumber(expires)
  if head <= now then
    head = nil
    settle()
  elseif free < count then
    -- It may sell out in this call: then the answer names the first live hold, not one that was purchased.
    local record = redis.call('HGET', state, 'h:' .. number)
    if not record or string.sub(record, 1, 1) ~= 'H' then
      head = nil
      settle()
    end
  end
end
free = free + returned

-- Turning a number into text is the dearest thing here: each is turned once a call.
local expires = math.min(now + tonumber(have[4]), ends)
local till = tostring(expires)
local due, held = ':' .. till .. ':', 'H' .. now .. ':' .. till .. ':0:'
local marks, pushed, taken = {}, {}, 0
for i = 1, count do
  local who, hold = fields[META + 2 * i - 1], fields[META + 2 * i]
  local share = have[META + 2 * i - 1]
  local his = counts[who] or (share and items_of(share)) or 0
  if have[META + 2 * i] then
    marks[i] = 'D'
  elseif free == 0 then
    marks[i] = again and 'A' or 'S'
  elseif his >= limit then
    -- Some of his may be among what has expired and was not looked at.
    if again then
      marks[i] = 'A'
    else
      marks[i] = (fresh[who] or tonumber(expiry_of(share)) > now) and 'L' or 'B'
    end
  else
    marks[i] = 'H'
    free, taken, counts[who], fresh[who] = free - 1, taken + 1, his + 1, true
    pushed[taken] = ARGV[3 * i] .. due .. ARGV[3 * i + 1]
    set(hold, held .. ARGV[3 * i + 2])
  end
end

-- The queue before the hash, which knows its length: a loss between the two is seen by the next call.
if dropped > 0 then redis.call('LTRIM', queue, dropped, -1) end
if taken > 0 then
  redis.call('RPUSH', queue, unpack(pushed))
  -- A list that was empty is a new key: it needs the state's backstop, a week after the end, again.
  if dropped == length then redis.call('EXPIREAT', queue, math.floor(ends / 1000) + 604800) end
end
local texts = {}
for who, his in pairs(counts) do
  if fresh[who] then
    -- What they hold now expires at one moment.
    texts[his] = texts[his] or till .. his
    set(who, texts[his])
  else
    set(who, expiry_of(shares[who]) .. his)
  end
end
if dropped > 0 or taken > 0 then
  set('free', free)
  set('queue', length - dropped + taken)
  set('held', have[10] - returned + taken)
  set('taken', have[11] + taken)
end
set('clock', now)
if slewed then set('slewed', slewed) end
redis.call('HSET', state, unpack(changed))

return 'K ' .. now .. ' ' .. expires .. ' ' .. (head or (taken > 0 and expires) or ends) .. '\n' .. table.concat(marks)
