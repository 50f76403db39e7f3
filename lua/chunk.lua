-- Holds in chunks: stands in front of the scripts that read holds, behind time.lua.
--
-- A hold's number is an instance and a counter. Eight numbers in a row, from a counter that is a multiple of eight on, are
-- a chunk: '<instance>:<counter / 8>' names it, and a letter from a to h names a slot of it. A state has two fields for a chunk:
--   'c<chunk>'  '<taken><expires>' of its holds (13 digits each, unix ms), then for each slot '<byte 32 + bytes of user>
--               <byte 32 + bytes of item><user><item>'. A slot without a hold is two spaces; such slots at the end may be missing
--   'm<chunk>'  its marks, 15 bytes each: '<slot><kind><13 digits>'. Kind P: purchased at; E and T: this hold expires, and was
--               taken, at another time than the chunk says. Expires 0: only the purchase is known
-- A hold that is not purchased has expired when its time has passed: no mark says so. (The sale's time never goes back.)
--
-- The queue has the holds that hold an item, in the order of expiry; each stands in one entry:
--   '<expires>:<instance>:<counter / 8>:<chunks>'   all holds without a mark E of so many chunks in a row
--   '<expires>:<instance>:<counter / 8>:<slots>'    these holds of one chunk, each of which has a mark E
-- A purchased hold stays in its entry, which is dropped as a whole. A kind of mark that ends a hold in another way (a release)
-- has to be known to `holds_item`.

-- Chunks that one call looks at on the queue's head, or few more: an entry is looked at as a whole. With 512 checkouts, and
-- 64 chunks in the last entry, the longest unpack is 2 * 512 + 2 * 64 + 2 * 8 * (64 + 63) + 12, below Lua's 8,000.
local BOUND = 64

local byte, char, find, sub = string.byte, string.char, string.find, string.sub

-- The digits of a mark; nil where there is no such mark.
local function mark_of(marks, slot, kind)
  local at = marks and find(marks, slot .. kind, 1, true)
  return at and sub(marks, at + 2, at + 14)
end

-- Whether a hold that has not expired holds an item: its slot has no mark that ends it.
local function holds_item(marks, slot) return not (marks and find(marks, slot .. 'P', 1, true)) end

-- Puts the fields of the users into `back` whose holds of this chunk hold an item: those with one of the marks E `slots`,
-- or those without (nil). Without `back`, says whether there is such a hold.
local function live_users(chunk, marks, slots, back)
  if not chunk or #chunk < 26 or marks and #marks % 15 ~= 0 then error('cannot read a chunk of holds') end
  local nth, at = 0, 27
  while at <= #chunk do
    local user, item = byte(chunk, at, at + 1)
    if not item or user < 32 or item < 32 or at + user + item - 63 > #chunk then error('cannot read a chunk of holds') end
    if user > 32 then
      local slot = char(97 + nth)
      local is_meant
      if slots then is_meant = find(slots, slot, 1, true) else is_meant = not (marks and find(marks, slot .. 'E', 1, true)) end
      if is_meant and holds_item(marks, slot) then
        if not back then return true end
        back[#back + 1] = 'u:' .. sub(chunk, at + 2, at + user - 31)
      end
    end
    nth, at = nth + 1, at + user + item - 62
  end
end

-- Looks at `entries`, the queue's first ones, in their order. Gives how many of them can be dropped, since their holds have
-- expired or hold no item, and when the first of the others expires (text; nil if that is not known). `back` gets the users' fields
-- of the holds that have expired now: their items come back.
local function settle(state, entries, now, back)
  local names, parsed, chunks = {}, {}, 0
  for i, entry in ipairs(entries) do
    if chunks >= BOUND then break end
    local expires, instance, first, rest = string.match(entry, '^(%d+):(%d+):(%d+):(%w+)$')
    if not expires then error('cannot read an entry of the queue') end
    local count = tonumber(rest) or 1
    parsed[i] = {expires, count, not tonumber(rest) and rest}
    for chunk = first, first + count - 1 do
      local name = instance .. ':' .. chunk
      names[2 * chunks + 1], names[2 * chunks + 2] = 'c' .. name, 'm' .. name
      chunks = chunks + 1
    end
  end
  local found, at = redis.call('HMGET', state, unpack(names)), 0
  for i, entry in ipairs(parsed) do
    local is_due = tonumber(entry[1]) <= now
    for _ = 1, entry[2] do
      local is_live = live_users(found[at + 1], found[at + 2], entry[3], is_due and back or nil)
      if is_live then return i - 1, entry[1] end
      at = at + 2
    end
  end
  return #parsed, nil
end

-- The held and purchased items of a user's share, '<expiry of the last hold, 13 digits><items>'. Fails where there is none, or none
-- that can be read.
local function items_of(share) return share and tonumber(sub(share, 14)) or error('cannot read a share') end
