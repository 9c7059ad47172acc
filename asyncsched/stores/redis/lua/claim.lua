-- KEYS[6]: meta. ARGV: {now, token, limit, lease, ahead, bytes, is_more, queues, seen, epoch}.
-- Answers {now, next wake, epoch, fence, is_whole, rows}; with is_whole nil nothing was claimed, since writes were lost.

local given, token, limit, lease, ahead, room, is_more, queues, seen, epoch = unpack(cmsgpack.unpack(ARGV[1]), 1, 10)
local meta = KEYS[6]
local now = clock(given)
local horizon, till = now + ahead, now + lease

local function answer(next_wake, fence, is_whole, rows)
  return '\150' .. pack('>Bd', 203, now) .. (next_wake < NEVER and pack('>Bd', 203, next_wake) or '\192')
    .. pack('>BI8BI8', 207, epoch, 207, fence) .. (is_whole == nil and '\192' or is_whole and '\195' or '\194') .. rows_of(rows)
end

local fence
do
  local found = call('HMGET', meta, 'fence', 'epoch')
  local known = epoch
  fence, epoch = tonumber(found[1] or 0), tonumber(found[2] or 0)
  if fence < seen then
    -- A margin for what other clients have seen.
    fence, epoch = seen + 1000000, math.max(epoch, known) + 1
    call('HSET', meta, 'fence', string.format('%.0f', fence), 'epoch', epoch)
  end
  if known ~= epoch then return answer(NEVER, fence, nil, {}) end
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

local rows, mine, expired, again, size, took = {}, {}, {}, {}, 0, 0

-- What a claim of this token holds already; what has expired meanwhile is due, and taken like anything else.
local before = call('HGET', claims, token)
if before then
  before = cmsgpack.unpack(before)
  load(before)
  for _, id in ipairs(before) do
    local r = kept[id]
    if r and r.holder == token and r.wake <= now then
      expired[#expired + 1] = id
    elseif r and r.holder == token then
      mine[#mine + 1] = id
      if not is_more then
        rows[#rows + 1] = row(r)
        took = took + 1
      end
    end
  end
end
local kept_count = #mine

local sets, left, entered, held_left, held_entered = {}, {}, {}, {}, {}
local next_fence = fence + 1
local end_key, end_field = moment(till), '\203' .. pack('>d', till)
local fence_holder = pack('>BI8', 207, next_fence) .. cmsgpack.pack(token)

local function take(id, lane, place, value, wake, old, settled, version, tries, nl, ni, nh, nb, nc, holder)
  local identity = HEAD_SIZE + 1 + nl
  local hold = identity + ni
  local body = hold + nh
  local last = body + nb + nc - 1
  local prior = 0
  if holder ~= '' then
    prior = old
    let_go[holder] = (let_go[holder] or 0) + 1
  end
  sets[#sets + 1] = id
  sets[#sets + 1] = pack(HEAD, till, next_fence, settled, prior, version, tries + 1, nl, ni, nh, nb, nc)
    .. sub(value, HEAD_SIZE + 1, last) .. token
  left[#left + 1] = place
  entered[#entered + 1] = '0'
  entered[#entered + 1] = lane .. end_key .. id
  local hold_field = '\192'
  if nh > 0 then
    local text = sub(value, hold, body - 1)
    hold_field = cmsgpack.pack(text)
    held_left[#held_left + 1] = measured(text) .. moment(wake) .. id
    held_entered[#held_entered + 1] = '0'
    held_entered[#held_entered + 1] = measured(text) .. end_key .. id
  end
  rows[#rows + 1] = '\159' .. sub(value, identity, hold - 1) .. end_field .. hold_field .. sub(value, body, last)
    .. pack('>BI4', 206, version) .. fence_holder .. pack('>BI8BI4', 207, settled, 206, tries + 1)
    .. (prior == 0 and '\192' or pack('>BI8', 207, prior))
  mine[#mine + 1] = id
  again[id] = true
  took = took + 1
  size = size + #value
end

local function take_from(lane)
  local from, to = '[' .. lane, '(' .. lane .. moment(horizon) .. '\255'
  while took < limit and size < room do
    local wanted = limit - took
    local due = call('ZRANGEBYLEX', lanes, from, to, 'LIMIT', 0, wanted)
    if #due == 0 then return end
    local ids = {}
    for i, place in ipairs(due) do ids[i] = sub(place, #lane + 9) end
    local values = call('HMGET', jobs, unpack(ids))
    for i, value in ipairs(values) do
      local wake, old, settled, _, version, tries, nl, ni, nh, nb, nc = parse(HEAD, value)
      local holder = sub(value, HEAD_SIZE + 1 + nl + ni + nh + nb + nc)
      if (holder == '' and wake < NEVER) or wake <= now then
        take(ids[i], lane, due[i], value, wake, old, settled, version, tries, nl, ni, nh, nb, nc, holder)
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
  fence = call('HINCRBY', meta, 'fence', 1)
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
return answer(next_wake, fence, size < room, rows)
