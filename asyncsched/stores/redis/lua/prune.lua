-- ARGV: {now, older, per_job, limit, swept, budget}: entries older than so many seconds, or beyond the newest of their job, for
-- so many jobs behind the one that was swept last. Answers {how many went, the job swept last, or '' at the end}.

local given, older, per_job, limit, swept, budget = unpack(cmsgpack.unpack(ARGV[1]), 1, 6)
local pruned = 0

local function drop(by_time, by_job, keys)
  each('ZREM', times, by_time)
  each('ZREM', of_jobs, by_job)
  each('HDEL', log, keys)
  pruned = pruned + #keys
end

if older then
  local by_job, keys = {}, {}
  local old = call('ZRANGEBYLEX', times, '-', '(' .. moment(clock(given) - older), 'LIMIT', 0, limit)
  for i, place in ipairs(old) do
    local zero = string.find(place, '\0', 9, true)
    keys[i] = sub(place, 9)
    by_job[i] = measured(sub(place, 9, zero - 1)) .. sub(place, 1, 8) .. sub(place, zero + 1)
  end
  drop(old, by_job, keys)
end

local function prune_job(base, count)
  local by_time, keys = {}, {}
  local oldest = call('ZRANGEBYLEX', of_jobs, '[' .. base, '(' .. base .. '\255', 'LIMIT', 0, count)
  for i, place in ipairs(oldest) do
    keys[i] = sub(base, 3) .. '\0' .. sub(place, #base + 9)
    by_time[i] = sub(place, #base + 1, #base + 8) .. keys[i]
  end
  drop(by_time, oldest, keys)
end

local looked = 0
while per_job and pruned < limit and looked < budget do
  local first = call('ZRANGEBYLEX', of_jobs, swept == '' and '-' or '(' .. swept .. '\255', '+', 'LIMIT', 0, 1)[1]
  if not first then
    swept = ''
    break
  end
  local base = sub(first, 1, parse('>I2', first) + 2)
  local excess = call('ZLEXCOUNT', of_jobs, '[' .. base, '(' .. base .. '\255') - per_job
  if excess > 0 then prune_job(base, math.min(excess, limit - pruned)) end
  -- A job that is crowded still is looked at again.
  if pruned < limit or excess <= 0 then swept = base end
  looked = looked + 1
end
return '\146' .. cmsgpack.pack(pruned) .. binary(swept)
