-- The log. KEYS: 7 log     hash  key of an entry -> its body
--                8 times   zset  time, key: the whole log in its order
--                9 of_jobs zset  job, time, rest of the key: the log of each job in its order
-- The key is job, fence, kind and fire time.

local log, times, of_jobs = KEYS[7], KEYS[8], KEYS[9]
local doubtful, sets, by_time, by_job, is_noted = {}, {}, {}, {}, {}

-- Take entries in hand: arrays of job, fence, kind, fire time, time, body. With the fence of a claim that ends now, an entry
-- cannot have been written before.
local function note(entries, own_fence)
  for _, entry in ipairs(entries) do
    local job, fence, kind, fire_at, at, body = unpack(entry, 1, 6)
    if fire_at < 0 then fire_at = 0 end
    if at < 0 then at = 0 end
    local key = pack('>sdsd', job, fence, kind, fire_at)
    if not is_noted[key] then
      is_noted[key] = true
      local n = #sets
      if fence ~= own_fence then doubtful[#doubtful + 1] = n + 1 end
      sets[n + 1], sets[n + 2] = key, body
      by_time[n + 1], by_time[n + 2] = '0', pack('>dsdsd', at, job, fence, kind, fire_at)
      by_job[n + 1], by_job[n + 2] = '0', pack('>I2c0ddsd', #job, job, at, fence, kind, fire_at)
    end
  end
end

-- Leave out what is there already.
local function forget_known()
  for i = #doubtful, 1, -1 do
    local at = doubtful[i]
    if call('HEXISTS', log, sets[at]) == 1 then
      for _, list in ipairs({ sets, by_time, by_job }) do
        table.remove(list, at + 1)
        table.remove(list, at)
      end
    end
  end
end

-- Write the entries that are not there yet.
local function flush_log()
  if #sets == 0 then return end
  forget_known()
  each('HSET', log, sets)
  each('ZADD', times, by_time)
  each('ZADD', of_jobs, by_job)
end
