-- Counts the answers of all threads by status, and tells the end of a run.
--
-- Loaded with dofile by the scripts beside it. Prints the counts below wrk's own summary; with REPORT=<file> it also
-- writes everything there as JSON, for loadtest.sh.
local report = {}
local threads = {}

-- In wrk's main thread, before the others start.
function report.setup(thread)
  thread:set('number', #threads)
  table.insert(threads, thread)
end

-- In each thread: `statuses` is a global, since wrk hands only those over.
statuses = {}
function report.count(status)
  statuses[status] = (statuses[status] or 0) + 1
end

local function sums()
  local total, order = {}, {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get('statuses')) do
      if not total[status] then table.insert(order, status) end
      total[status] = (total[status] or 0) + count
    end
  end
  table.sort(order)
  return total, order
end

local function write_json(path, summary, latency, answers)
  local file = assert(io.open(path, 'w'))
  local quantiles = {}
  for _, quantile in ipairs({50, 90, 99, 99.9}) do
    table.insert(quantiles, string.format('"%g":%d', quantile, latency:percentile(quantile)))
  end
  local errors = summary.errors
  file:write(string.format(
    '{"requests":%d,"duration_us":%d,"latency_us":{%s},"answers":{%s},' ..
      '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d}}\n',
    summary.requests, summary.duration, table.concat(quantiles, ','), table.concat(answers, ','),
    errors.connect, errors.read, errors.write, errors.timeout))
  file:close()
end

-- In wrk's main thread, at the end.
function report.done(summary, latency)
  local total, order = sums()
  local shown, answers = {}, {}
  for _, status in ipairs(order) do
    table.insert(shown, status .. ': ' .. total[status])
    table.insert(answers, string.format('"%d":%d', status, total[status]))
  end
  print('Answers by status  ' .. table.concat(shown, '  '))
  local path = os.getenv('REPORT')
  if path then write_json(path, summary, latency, answers) end
end

return report
