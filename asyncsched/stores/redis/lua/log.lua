-- The log. KEYS: 7 log     hash  key of an entry -> its body
--                8 times   zset  time, key: the whole log in its order
--                9 of_jobs zset  job, time, rest of the key: the log of each job in its order
-- The key is job, fence, kind and fire time.

local log, times, of_jobs = KEYS[7], KEYS[8], KEYS[9]
local fresh, bodies, order = {}, {}, {}

-- Take entries in hand: arrays of job, fence, kind, fire time, time, body.
local function note(entries)
  for _, entry in ipairs(entries) do
    local job = entry[1]
    local rest = pack('>d', entry[2]) .. entry[3] .. '\0' .. moment(entry[4])
    local key = job .. '\0' .. rest
    if not fresh[key] then
      local at = moment(entry[5])
      fresh[key] = { at .. key, measured(job) .. at .. rest }
      bodies[key] = entry[6]
      order[#order + 1] = key
    end
  end
end

-- Write the entries that are not there yet.
local function flush_log()
  local sets, by_time, by_job = {}, {}, {}
  for i = 1, #order, 1000 do
    local last = math.min(i + 999, #order)
    local there = call('HMGET', log, unpack(order, i, last))
    for j = i, last do
      local key = order[j]
      if not there[j - i + 1] then
        local n = #sets
        sets[n + 1], sets[n + 2] = key, bodies[key]
        by_time[n + 1], by_time[n + 2] = '0', fresh[key][1]
        by_job[n + 1], by_job[n + 2] = '0', fresh[key][2]
      end
    end
  end
  each('HSET', log, sets)
  each('ZADD', times, by_time)
  each('ZADD', of_jobs, by_job)
end
