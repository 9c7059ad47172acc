-- The layout of a record, and changes to records that are kept in hand and written together.
--
-- KEYS: 1 jobs   hash  id -> what changes of a record with each claim
--       2 fixed  hash  id -> what does not: msgpack of {id, birth, queue, priority, task, body}
--       3 lanes  zset  lane, wake time, id: all records in the order in which they are claimed, by their bytes
--       4 holds  zset  hold, wake time, id: those with a hold
--       5 claims hash  token -> ids that it took
--       6 counts hash  token -> how many of them it holds still
--
-- A lane is the queue with its length before it, and a digit that falls as the priority rises. A time is a double in network
-- order, whose bytes stand in the order of the times; what never wakes has an infinite one.

local jobs, fixed, lanes, holds, claims, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
-- wake_at, fence, settled, prior (0: none), version, tries, and the lengths of lane, hold and cursor, which follow; what is left
-- is the holder.
local HEAD, HEAD_SIZE = '>dI8I8I8I4I4I4I4I4', 52

local function lane_of(queue, priority)
  return measured(queue) .. char(57 - priority)
end

local function read(id, value)
  local wake, fence, settled, prior, version, tries, nl, nh, nc, at = parse(HEAD, value)
  local holder = at + nl + nh + nc
  return {
    id = id, wake = wake, fence = fence, settled = settled, prior = prior, version = version, tries = tries,
    lane = sub(value, at, at + nl - 1), hold = nh > 0 and sub(value, at + nl, at + nl + nh - 1) or '',
    holder = sub(value, holder), value = value, cursor_at = at + nl + nh, cursor_end = holder - 1,
  }
end

local function written(r)
  local cursor = r.cursor or sub(r.value, r.cursor_at, r.cursor_end)
  return pack(HEAD, r.wake, r.fence, r.settled, r.prior, r.version, r.tries, #r.lane, #r.hold, #cursor)
    .. r.lane .. r.hold .. cursor .. r.holder
end

-- -- changes in hand ------------------------------------------------------------------------------------------------------

local kept = {}  -- id -> record, or false: there is none
local places = {}  -- id -> place in lanes as it stands in the store, or false
local held_places = {}  -- the same in holds
local changed = {}  -- ids in the order of their first change
local let_go = {}  -- token -> how many it does not hold any more

local function load(ids)
  local missing = {}
  for _, id in ipairs(ids) do
    if kept[id] == nil then
      kept[id] = false
      missing[#missing + 1] = id
    end
  end
  for i = 1, #missing, 1000 do
    local last = math.min(i + 999, #missing)
    local values = call('HMGET', jobs, unpack(missing, i, last))
    for j = i, last do
      local value = values[j - i + 1]
      kept[missing[j]] = value and read(missing[j], value)
    end
  end
end

local function place_in_lanes(r)
  return r.lane .. moment(r.wake) .. r.id
end

local function place_in_holds(r)
  return r.hold ~= '' and measured(r.hold) .. moment(r.wake) .. r.id or false
end

-- To be called before a kept record is changed.
local function change(id)
  if places[id] == nil then
    local r = kept[id]
    places[id] = r and place_in_lanes(r)
    held_places[id] = r and place_in_holds(r)
    changed[#changed + 1] = id
  end
end

local function forget_holder(r)
  if r.holder ~= '' then
    let_go[r.holder] = (let_go[r.holder] or 0) + 1
    r.holder = ''
  end
end

-- Put in a record, if its id is free; say whether the id belongs to another birth. It comes as an array: id, fixed part, queue,
-- priority, wake_at, hold, cursor, version, fence, holder, settled, tries, prior.
local function insert(given)
  local id = given[1]
  if kept[id] then
    local there = kept[id].fixed or call('HGET', fixed, id)
    local _, _, birth = cmsgpack.unpack_limit(there, 2, 1)
    local _, _, own = cmsgpack.unpack_limit(given[2], 2, 1)
    return birth ~= own
  end
  change(id)
  kept[id] = {
    id = id, fixed = given[2], lane = lane_of(given[3], given[4]), wake = given[5] or NEVER, hold = given[6] or '',
    cursor = given[7], version = given[8], fence = given[9], holder = given[10] or '', settled = given[11],
    tries = given[12], prior = given[13] or 0,
  }
  return false
end

local function forget_claims()
  for token, count in pairs(let_go) do
    if call('HINCRBY', counts, token, -count) <= 0 then
      call('HDEL', counts, token)
      call('HDEL', claims, token)
    end
  end
  let_go = {}
end

local earliest = {}  -- lane -> the first place that was taken in it by what nobody holds

-- Write what was changed.
local function flush()
  local sets, fixed_sets, deletes, left, entered, held_left, held_entered = {}, {}, {}, {}, {}, {}, {}
  for _, id in ipairs(changed) do
    local r, was, was_held, is, is_held = kept[id], places[id], held_places[id], false, false
    if r then
      is, is_held = place_in_lanes(r), place_in_holds(r)
      local n = #sets
      sets[n + 1], sets[n + 2] = id, written(r)
      if r.fixed then
        n = #fixed_sets
        fixed_sets[n + 1], fixed_sets[n + 2] = id, r.fixed
      end
      if r.holder == '' and r.wake < NEVER and not (earliest[r.lane] and earliest[r.lane] < is) then
        earliest[r.lane] = is
      end
    elseif was then
      deletes[#deletes + 1] = id
    end
    if was ~= is then
      if was then left[#left + 1] = was end
      if is then
        local n = #entered
        entered[n + 1], entered[n + 2] = '0', is
      end
    end
    if was_held ~= is_held then
      if was_held then held_left[#held_left + 1] = was_held end
      if is_held then
        local n = #held_entered
        held_entered[n + 1], held_entered[n + 2] = '0', is_held
      end
    end
  end
  each('HSET', jobs, sets)
  each('HSET', fixed, fixed_sets)
  each('HDEL', jobs, deletes)
  each('HDEL', fixed, deletes)
  each('ZREM', lanes, left)
  each('ZADD', lanes, entered)
  each('ZREM', holds, held_left)
  each('ZADD', holds, held_entered)
  places, held_places, changed = {}, {}, {}
  forget_claims()
end

-- Tell who waits, where something now is the first of its lane. Whoever sleeps has planned to wake for what was first before,
-- or earlier; so nothing else can be news to him.
local function hint(channel, sender)
  local sooner = NEVER
  for lane, place in pairs(earliest) do
    local first = call('ZRANGEBYLEX', lanes, '[' .. lane, '(' .. lane .. '\255', 'LIMIT', 0, 1)[1]
    if first == place then
      sooner = math.min(sooner, (parse('>d', place, #lane + 1)))
    end
  end
  if sooner < NEVER then
    publish(channel, sender .. ' ' .. string.format('%.17g', sooner))
  end
  return pack('>d', sooner)
end

-- Add to *answer* the two parts of each of those records.
local function answer_with(answer, ids)
  for i = 1, #ids, 1000 do
    local last = math.min(i + 999, #ids)
    local parts = call('HMGET', fixed, unpack(ids, i, last))
    for j = i, last do
      local n = #answer
      answer[n + 1], answer[n + 2] = parts[j - i + 1], written(kept[ids[j]])
    end
  end
  return answer
end
