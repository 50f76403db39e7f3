-- A random user of a million asks for a random item, on every request.
local report = dofile((debug.getinfo(1, 'S').source:match('^@(.*/)') or '') .. 'report.lua')
local user_count, item_count = 1000000, 10000

setup, done = report.setup, report.done
response = report.count

function init()
  -- Threads begin with one seed; the address of a fresh table tells them apart.
  math.randomseed(os.time() + tonumber(tostring({}):match('0x(%x+)'), 16) % 1000003)
end

function request()
  return wrk.format('POST', '/checkout?user_id=' .. math.random(user_count) .. '&id=' .. math.random(item_count))
end
