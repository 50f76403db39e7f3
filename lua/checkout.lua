-- Takes an item for each of a batch of checkouts, in their order.
--
-- KEYS   1 the sale's state (hash), 2 its queue (list); one hash tag
-- ARGV   1 the epoch, 2 the latest that the clock may show (unix ms), 3 how many checkouts, 4 '<instance>:<first chunk>:<chunks>':
--        the chunks of numbers that are theirs, in a row, eight checkouts to a chunk; then for each checkout the field of the user's
--        share; for each chunk its field; for each chunk the entries of its slots (see chunk.lua)
-- Reply  'K <now> <expires> <next>\n<marks>'  times in unix ms; a mark for each checkout:
--          H held until <expires>, S sold out until <next> at least,
--          L the user's limit, B the user's limit and all of it is purchased,
--          A again: more holds may have expired than one call takes back, D a number of its chunk is taken
--        'N' no state, 'E <epoch>' another epoch, 'C <status>' not selling, 'T <now>' the sale is not on,
--        'Q' the queue is not the one that the state knows; nothing was changed by any of these
-- Fails  where a share, a chunk or an entry of the queue cannot be read: nothing was changed
-- Holds  free + held + purchased = items; the queue is in the order of expiry and `queue` is its length;
--        `taken` counts all holds that there ever were
--
-- A user's share is '<expiry of the last hold, 13 digits><held and purchased items>': a user who is at the limit after that moment
-- has purchased all of it. Before it that is not known (L): purchases would have to read and write the share, which made them a
-- third dearer.

local state, queue = KEYS[1], KEYS[2]
local argv, call, ceil = ARGV, redis.call, math.ceil

local META = 12
local count = tonumber(argv[3])
local chunks = ceil(count / 8)
local have = call('HMGET', state, 'epoch', 'status', 'limit', 'hold', 'start', 'end', 'clock', 'free', 'queue', 'held', 'taken', 'slewed',
  unpack(argv, 5, 4 + count + chunks))
if not have[1] then return 'N' end
if have[1] ~= argv[1] then return 'E ' .. have[1] end
if have[2] ~= 'selling' then return 'C ' .. (have[2] or '') end

local limit, ends, free = tonumber(have[3]), tonumber(have[6]), tonumber(have[8])
local now, slewed = sale_time(tonumber(have[7]), have[12], ends, tonumber(argv[2]))
if now < tonumber(have[5]) or now >= ends then return 'T ' .. now end
local length = tonumber(have[9])
if call('LLEN', queue) ~= length then return 'Q' end

-- What holds no item any more leaves the queue's head: holds that have expired, whose items come back, and purchased ones.
-- `head` is the expiry of the first live hold afterwards. Where the call may sell out, the answer names the first live hold, and not
-- one that was purchased.
local dropped, again, head, back = 0, false, nil, {}
local first = call('LINDEX', queue, 0)
if first then
  head = sub(first, 1, 13)
  if tonumber(head) <= now or free < count and settle(state, {first}, now, back) == 1 then
    dropped, head = settle(state, call('LRANGE', queue, 0, BOUND - 1), now, back)
    again = not head and dropped < length
  end
end
local counts, fresh, shares = {}, {}, {}
if back[1] then
  local found = call('HMGET', state, unpack(back))
  for i, who in ipairs(back) do
    counts[who], shares[who] = (counts[who] or items_of(found[i])) - 1, found[i]
  end
  free = free + #back
end

-- The chunks of which a number is taken. A number is given out twice only where the ledger was restored to an earlier time.
local used
for i = 1, chunks do
  if have[META + count + i] then
    used = used or {}
    used[i] = true
  end
end

local marks, taken = {}, 0
for i = 1, count do
  local who, share = argv[4 + i], have[META + i]
  local items = counts[who] or share and items_of(share) or 0
  if used and used[ceil(i / 8)] then
    marks[i] = 'D'
  elseif free == 0 then
    marks[i] = again and 'A' or 'S'
  elseif items >= limit then
    -- Some of the user's may be among what has expired and was not looked at.
    if again then
      marks[i] = 'A'
    else
      marks[i] = (fresh[who] or share and tonumber(sub(share, 1, 13)) > now) and 'L' or 'B'
    end
  else
    marks[i] = 'H'
    free, taken, counts[who], fresh[who] = free - 1, taken + 1, items + 1, true
  end
end

-- Turning a number into text is the dearest thing here: each is turned once a call, and in the cheapest way.
local text = string.format
local clock, till = text('%d', now), text('%d', math.min(now + tonumber(have[4]), ends))
local changed, pushed = {'clock', clock}, {}
local size = 2
local payloads, stamp = 4 + count + chunks, clock .. till
if taken > 0 and taken == count then
  -- As the caller has put them together.
  pushed[1] = till .. ':' .. argv[4]
  for i = 1, chunks do
    changed[size + 1], changed[size + 2] = argv[4 + count + i], stamp .. argv[payloads + i]
    size = size + 2
  end
elseif taken > 0 then
  local instance, number = string.match(argv[4], '^(%d+):(%d+):')
  local run = 0
  for i = 1, chunks + 1 do
    local parts, last, at = {}, 0, 1
    for j = 8 * i - 7, math.min(8 * i, count) do
      local user, item = byte(argv[payloads + i], at, at + 1)
      local next = at + user + item - 62
      local nth = #parts + 1
      parts[nth] = '  '
      if marks[j] == 'H' then
        parts[nth], last = sub(argv[payloads + i], at, next - 1), nth
      end
      at = next
    end
    if last > 0 then
      run = run + 1
      changed[size + 1], changed[size + 2] = argv[4 + count + i], stamp .. table.concat(parts, '', 1, last)
      size = size + 2
    elseif run > 0 then
      -- An entry for each run of chunks that were written.
      pushed[#pushed + 1] = till .. ':' .. instance .. ':' .. (number + i - 1 - run) .. ':' .. run
      run = 0
    end
  end
end
-- All that a user holds from this call expires at the same moment: users with as many items have the same text.
local texts = {}
for who, items in pairs(counts) do
  local share = fresh[who] and texts[items]
  if not share then
    share = (fresh[who] and till or sub(shares[who], 1, 13)) .. items
    if fresh[who] then texts[items] = share end
  end
  changed[size + 1], changed[size + 2] = who, share
  size = size + 2
end
if dropped > 0 or taken > 0 then
  changed[size + 1], changed[size + 2] = 'free', text('%d', free)
  changed[size + 3], changed[size + 4] = 'queue', text('%d', length - dropped + #pushed)
  changed[size + 5], changed[size + 6] = 'held', text('%d', have[10] - #back + taken)
  changed[size + 7], changed[size + 8] = 'taken', text('%d', have[11] + taken)
  size = size + 8
end
if slewed then changed[size + 1], changed[size + 2] = 'slewed', slewed end

-- The queue before the hash, which knows its length: a loss between the two is seen by the next call.
if dropped > 0 then call('LTRIM', queue, dropped, -1) end
if taken > 0 then
  call('RPUSH', queue, unpack(pushed))
  -- A list that was empty is a new key: it needs the state's backstop, a week after the end, again.
  if dropped == length then call('EXPIREAT', queue, math.floor(ends / 1000) + 604800) end
end
call('HSET', state, unpack(changed))

return 'K ' .. clock .. ' ' .. till .. ' ' .. (head or (taken > 0 and till) or ends) .. '\n' .. table.concat(marks)
