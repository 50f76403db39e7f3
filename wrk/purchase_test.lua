-- Redeems the codes of codes.txt (or of the file that CODES names), one code a line, as loadtest.sh exports them.
--
-- Each thread goes round all of them from a place of its own. A code that was redeemed before is told
-- `already_purchased`: that is load too.
local here = debug.getinfo(1, 'S').source:match('^@(.*/)') or ''
local report = dofile(here .. 'report.lua')

setup, done = report.setup, report.done
response = report.count

local codes, at = {}, 0
function init()
  for line in io.lines(os.getenv('CODES') or (here .. 'codes.txt')) do
    if #line == 32 and line:match('^%x+$') then table.insert(codes, line) end
  end
  if #codes == 0 then error('there are no codes: loadtest.sh exports them') end
  -- A thread does not learn how many there are. Steps of the golden ratio spread any number of them well.
  at = math.floor(number * 0.618034 % 1 * #codes)
end

function request()
  at = at % #codes + 1
  return wrk.format('POST', '/purchase?code=' .. codes[at])
end
