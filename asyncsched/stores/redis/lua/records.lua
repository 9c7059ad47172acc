-- The layout of a record, and changes to records that are kept in hand and written together.
--
-- KEYS: 1 jobs   hash  id -> record
--       2 lanes  zset  lane, wake time, id: all records in the order in which they are claimed, by their bytes
--       3 holds  zset  hold, wake time, id: those with a hold
--       4 claims hash  token -> ids that it took
--       5 counts hash  token -> how many of them it holds still
--
-- A lane is the queue with its length before it, and a digit that falls as the priority rises. A time is a double in network
-- order, whose bytes stand in the order of the times; what never wakes has an infinite one.

local jobs, lanes, holds, claims, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
-- wake_at, fence, settled, prior (0: none), version, tries, and the lengths of lane, identity, hold, body and cursor, which
-- follow; what is left is the holder. Identity, body and cursor are msgpack, so that an answer is put together of pieces.
local HEAD, HEAD_SIZE = '>ddddI4I4I4I4I4I4I4', 60

local function lane_of(queue, priority)
  return measured(queue) .. char(57 - priority)
end

local function read(id, value)
  local wake, fence, settled, prior, version, tries, nl, ni, nh, nb, nc, at = parse(HEAD, value)
  local identity = at + nl
  local hold = identity + ni
  local body = hold + nh
  local cursor = body + nb
  return {
    id = id, wake = wake, fence = fence, settled = settled, prior = prior, version = version, tries = tries,
    lane = sub(value, at, identity - 1), identity = sub(value, identity, hold - 1), hold = sub(value, hold, body - 1),
    body = sub(value, body, cursor - 1), cursor = sub(value, cursor, cursor + nc - 1), holder = sub(value, cursor + nc),
  }
end

local function written(r)
  return pack(HEAD, r.wake, r.fence, r.settled, r.prior, r.version, r.tries,
      #r.lane, #r.identity, #r.hold, #r.body, #r.cursor)
    .. r.lane .. r.identity .. r.hold .. r.body .. r.cursor .. r.holder
end

-- A record as the client reads it: a msgpack array with the fields in the contract's order.
local function row(r)
  return '\159' .. r.identity
    .. (r.wake == NEVER and '\192' or '\203' .. pack('>d', r.wake))
    .. (r.hold == '' and '\192' or cmsgpack.pack(r.hold)) .. r.body .. r.cursor
    .. pack('>BI4BI8', 206, r.version, 207, r.fence) .. (r.holder == '' and '\192' or cmsgpack.pack(r.holder))
    .. pack('>BI8BI4', 207, r.settled, 206, r.tries) .. (r.prior == 0 and '\192' or pack('>BI8', 207, r.prior))
end

-- -- changes in hand ------------------------------------------------------------------------------------------------------

local kept = {}  -- id -> record, or false: there is none
local places = {}  -- id -> {place in lanes, place in holds} as they stand in the store
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
  if not places[id] then
    local r = kept[id]
    places[id] = r and { place_in_lanes(r), place_in_holds(r) } or { false, false }
    changed[#changed + 1] = id
  end
end

local function forget_holder(r)
  if r.holder ~= '' then
    let_go[r.holder] = (let_go[r.holder] or 0) + 1
    r.holder = ''
  end
end

-- Put in a record, if its id is free; say whether the id belongs to another birth. It comes as an array: id, birth, queue,
-- priority, task, wake_at, hold, body, cursor, version, fence, holder, settled, tries, prior.
local function insert(given)
  local id = given[1]
  local there = kept[id]
  if there then
    local own = cmsgpack.pack(id, given[2])
    return sub(there.identity, 1, #own) ~= own
  end
  change(id)
  kept[id] = {
    id = id, wake = given[6] or NEVER, fence = given[11], settled = given[13], prior = given[15] or 0,
    version = given[10], tries = given[14], lane = lane_of(given[3], given[4]),
    identity = cmsgpack.pack(id, given[2], given[3], given[4], given[5]), hold = given[7] or '',
    body = binary(given[8]), cursor = binary(given[9]), holder = given[12] or '',
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
  local sets, deletes, left, entered, held_left, held_entered = {}, {}, {}, {}, {}, {}
  for _, id in ipairs(changed) do
    local r, was, is, is_held = kept[id], places[id], false, false
    if r then
      is, is_held = place_in_lanes(r), place_in_holds(r)
      sets[#sets + 1] = id
      sets[#sets + 1] = written(r)
      if r.holder == '' and r.wake < NEVER and not (earliest[r.lane] and earliest[r.lane] < is) then
        earliest[r.lane] = is
      end
    elseif was[1] then
      deletes[#deletes + 1] = id
    end
    if was[1] ~= is then
      if was[1] then left[#left + 1] = was[1] end
      if is then
        entered[#entered + 1] = '0'
        entered[#entered + 1] = is
      end
    end
    if was[2] ~= is_held then
      if was[2] then held_left[#held_left + 1] = was[2] end
      if is_held then
        held_entered[#held_entered + 1] = '0'
        held_entered[#held_entered + 1] = is_held
      end
    end
  end
  each('HSET', jobs, sets)
  each('HDEL', jobs, deletes)
  each('ZREM', lanes, left)
  each('ZADD', lanes, entered)
  each('ZREM', holds, held_left)
  each('ZADD', holds, held_entered)
  places, changed = {}, {}
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
    call('PUBLISH', channel, sender .. ' ' .. string.format('%.17g', sooner))
  end
  return pack('>d', sooner)
end
