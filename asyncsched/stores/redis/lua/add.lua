-- ARGV: {channel, sender, records}. Answers the hint, and the ids that another birth holds.

local channel, sender, records = unpack(cmsgpack.unpack(ARGV[1]), 1, 3)
local ids, seen, taken, is_plain = {}, {}, {}, true
for i, record in ipairs(records) do
  local id = record[1]
  ids[i] = id
  is_plain = is_plain and not seen[id] and not record[6] and not record[10]
  seen[id] = true
end
if is_plain then
  for _, value in ipairs(call('HMGET', jobs, unpack(ids))) do
    if value then
      is_plain = false
      break
    end
  end
end

-- The ordinary case, without a change in hand for each: no id is taken, nothing is held back, and nobody holds any.
local function insert_plainly()
  local sets, fixed_sets, entered, made = {}, {}, {}, {}
  for i, record in ipairs(records) do
    local id, fixed_part, queue, priority, wake, _, cursor, version, fence, _, settled, tries, prior = unpack(record, 1, 13)
    local of_queue = made[queue]
    if not of_queue then
      of_queue = {}
      made[queue] = of_queue
    end
    local lane = of_queue[priority]
    if not lane then
      lane = lane_of(queue, priority)
      of_queue[priority] = lane
    end
    wake = wake or NEVER
    local place, n = lane .. moment(wake) .. id, 2 * i - 1
    sets[n], sets[n + 1] = id, pack(HEAD, wake, fence, settled, prior or 0, version, tries, #lane, 0, #cursor) .. lane .. cursor
    fixed_sets[n], fixed_sets[n + 1] = id, fixed_part
    entered[n], entered[n + 1] = '0', place
    if wake < NEVER and not (earliest[lane] and earliest[lane] < place) then earliest[lane] = place end
  end
  each('HSET', jobs, sets)
  each('HSET', fixed, fixed_sets)
  each('ZADD', lanes, entered)
end

if is_plain then
  insert_plainly()
else
  load(ids)
  for _, record in ipairs(records) do
    if insert(record) then taken[#taken + 1] = cmsgpack.pack(record[1]) end
  end
  flush()
end
return hint(channel, sender) .. list_of(taken)
