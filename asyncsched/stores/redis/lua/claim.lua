-- KEYS[7]: meta; 8: sent, where queues have tags of their own. ARGV: {now, token, limit, lease, ahead, bytes, is_more, queues, seen, epoch}.
-- Answers msgpack of {now, next wake, epoch, fence, is_whole, number of records on their way to other queues}, then both parts of each record; with is_whole nil nothing was
-- claimed, since writes were lost.

local given, token, limit, lease, ahead, room, is_more, queues, seen, epoch = unpack(cmsgpack.unpack(ARGV[1]), 1, 10)
local meta = KEYS[7]
local now = clock(given)
local horizon, till = now + ahead, now + lease

local answer = { false }

local function answered(next_wake, fence, is_whole)
  answer[1] = '\150' .. pack('>Bd', 203, now) .. (next_wake < NEVER and pack('>Bd', 203, next_wake) or '\192')
    .. pack('>BI8BI8', 207, epoch, 207, fence) .. (is_whole == nil and '\192' or is_whole and '\195' or '\194')
    .. cmsgpack.pack(KEYS[8] and call('HLEN', KEYS[8]) or 0)
  return answer
end

local fence
do
  local found = call('HMGET', meta, 'fence', 'epoch')
  local known = epoch
  fence, epoch = tonumber(found[1] or 0), tonumber(found[2] or 0)
  if fence < seen then
    -- A margin for what other clients have seen.
    fence, epoch = seen + 1000000, math.max(epoch, known or 0) + 1
    call('HSET', meta, 'fence', string.format('%.0f', fence), 'epoch', epoch)
  end
  if known and known ~= epoch then return answered(NEVER, fence, nil) end
end

-- The lanes, high priority first, queues in the order given: one probe for each, which brings its earliest record too.
local found = {}
for order, queue in ipairs(queues) do
  local base = measured(queue)
  local from, to = '[' .. base, '(' .. base .. '\255'
  while true do
    local first = call('ZRANGEBYLEX', lanes, from, to, 'LIMIT', 0, 1)[1]
    if not first then break end
    local lane = sub(first, 1, #base + 1)
    local digit = string.byte(lane, -1)
    found[#found + 1] = { digit, order, lane, (parse('>d', first, #lane + 1)) }
    from = '[' .. base .. char(digit + 1)
  end
end
if #queues > 1 then
  table.sort(found, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
end

local mine, expired, again, size, took = {}, {}, {}, 0, 0

-- What a claim of this token holds already; what has expired meanwhile is due, and taken like anything else.
local before = call('HGET', claims, token)
if before then
  before = cmsgpack.unpack(before)
  load(before)
  for _, id in ipairs(before) do
    local r = kept[id]
    if r and r.holder == token then
      local list = r.wake > now and mine or expired
      list[#list + 1] = id
    end
  end
  if not is_more then
    answer_with(answer, mine)
    took = #mine
  end
end
local kept_count = #mine

local sets, left, entered, held_left, held_entered = {}, {}, {}, {}, {}
local next_fence, end_key = fence, moment(till)

local function take(id, lane, place, value, holder, wake, old, settled, prior, version, tries, nl, nh, nc)
  local rest
  if holder == '' then
    rest = sub(value, HEAD_SIZE + 1)
  else
    prior = old
    rest = sub(value, HEAD_SIZE + 1, HEAD_SIZE + nl + nh + nc)
    let_go[holder] = (let_go[holder] or 0) + 1
  end
  -- One for each record, so that a fence stands for one claim of one job.
  next_fence = next_fence + 1
  local n, written = #sets, pack(HEAD, till, next_fence, settled, prior, version, tries + 1, nl, nh, nc) .. rest .. token
  sets[n + 1], sets[n + 2] = id, written
  left[#left + 1] = place
  n = #entered
  entered[n + 1], entered[n + 2] = '0', lane .. end_key .. id
  if nh > 0 then
    local hold = measured(sub(value, HEAD_SIZE + nl + 1, HEAD_SIZE + nl + nh))
    held_left[#held_left + 1] = hold .. moment(wake) .. id
    n = #held_entered
    held_entered[n + 1], held_entered[n + 2] = '0', hold .. end_key .. id
  end
  mine[#mine + 1] = id
  again[id] = true
  took = took + 1
  return written
end

local function take_from(lane)
  local from, to = '[' .. lane, '(' .. lane .. moment(horizon) .. '\255'
  while took < limit and size < room do
    local wanted = limit - took
    local due = call('ZRANGEBYLEX', lanes, from, to, 'LIMIT', 0, wanted)
    if #due == 0 then return end
    local ids = {}
    for i, place in ipairs(due) do ids[i] = sub(place, #lane + 9) end
    local values, parts = call('HMGET', jobs, unpack(ids)), call('HMGET', fixed, unpack(ids))
    for i, value in ipairs(values) do
      local wake, old, settled, prior, version, tries, nl, nh, nc = parse(HEAD, value)
      local holder = #value > HEAD_SIZE + nl + nh + nc and sub(value, HEAD_SIZE + 1 + nl + nh + nc) or ''
      if (holder == '' and wake < NEVER) or wake <= now then
        local n = #answer
        answer[n + 1] = parts[i]
        answer[n + 2] = take(ids[i], lane, due[i], value, holder, wake, old, settled, prior, version, tries, nl, nh, nc)
        size = size + #value + #parts[i]
        if size >= room then return end
      end
    end
    if #due < wanted then return end
    from = '(' .. due[#due]
  end
end

for _, lane in ipairs(found) do
  if took < limit and size < room and lane[4] <= horizon then
    take_from(lane[3])
    lane[4] = nil
  end
end

local taken = #mine - kept_count
if taken > 0 then
  for _, id in ipairs(expired) do
    if not again[id] then mine[#mine + 1] = id end
  end
  fence = call('HINCRBY', meta, 'fence', taken)
  each('HSET', jobs, sets)
  each('ZREM', lanes, left)
  each('ZADD', lanes, entered)
  each('ZREM', holds, held_left)
  each('ZADD', holds, held_entered)
  call('HSET', claims, token, cmsgpack.pack(mine))
  call('HINCRBY', counts, token, taken)
  forget_claims()
end

local next_wake = NEVER
for _, lane in ipairs(found) do
  local at = lane[4]
  if not at then
    local first = call('ZRANGEBYLEX', lanes, '[' .. lane[3], '(' .. lane[3] .. '\255', 'LIMIT', 0, 1)[1]
    at = first and (parse('>d', first, #lane[3] + 1)) or NEVER
  end
  if at < next_wake then next_wake = at end
end
return answered(next_wake, fence, size < room)
