-- The sale's time: stands in front of the scripts that decide by it.
--
-- Takes  last, the time of the last decision; slewed, where the clock is known to have gone back: '<Redis' clock>:<the
--        sale's time>' of that moment; ends, the sale's end; latest, beyond which the caller does not believe Redis'
--        clock; all in unix ms
-- Gives  the time, and what to keep as `slewed` if that has changed
-- Holds  the time never goes back. Behind `last` it goes on at half the clock's speed until the clock has caught up: holds
--        still expire, each after twice its length at most. It does not reach the sale's end that way

local function sale_time(last, slewed, ends, latest)
  local time = redis.call('TIME')
  local clock = math.min(time[1] * 1000 + math.floor(time[2] / 1000), latest)
  if clock >= last then return clock end
  if slewed then
    local was, from = string.match(slewed, '^(%d+):(%d+)$')
    local slow = math.min(from + math.floor((clock - was) / 2), ends - 1)
    if slow >= last then return slow end
  end
  return last, clock .. ':' .. last
end

