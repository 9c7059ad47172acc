-- ARGV: {now, channel, sender, settlements}. Answers the hint, and a letter for each settlement. A settlement is an
-- array; what it spawns, unparks and sends to other queues may be left out. KEYS[10]: sent, where queues have tags of their own.

local ID, FENCE, HOLDER, VERSION, CURSOR, WAKE_AT, HOLD, KIND, ENTRIES, SPAWN, UNPARK, SENT =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local DELETE, HAND_BACK = 1, 2

local given, channel, sender, settlements = unpack(cmsgpack.unpack(ARGV[1]), 1, 4)
local now = clock(given)

local function apply(s, r)
  local is_stale = r.version ~= s[VERSION]
  change(r.id)
  forget_holder(r)
  if s[KIND] == DELETE and not is_stale then
    kept[r.id] = false
  else
    if s[KIND] == HAND_BACK then
      r.tries = math.max(r.tries - 1, 0)
    else
      r.cursor, r.settled, r.tries = s[CURSOR], r.fence, 0
      r.prior = 0
      if not is_stale then r.hold = s[HOLD] or '' end
    end
    r.wake = is_stale and now or s[WAKE_AT] or NEVER
  end
  for _, record in ipairs(s[SPAWN] or {}) do insert(record) end
  if s[UNPARK] then unpark(s[UNPARK][1], s[UNPARK][2], now) end
  for key, record in pairs(s[SENT] or {}) do call('HSET', KEYS[10], key, record) end
  return is_stale and 's' or 'd'
end

local answers = {}

local function settle(i, s, r)
  if not r then
    answers[i] = 'g'
    note(s[ENTRIES])
  elseif r.fence ~= s[FENCE] or r.holder ~= s[HOLDER] or r.holder == '' then
    answers[i] = r.settled == s[FENCE] and 'a' or 'l'
  else
    answers[i] = apply(s, r)
    note(s[ENTRIES], s[FENCE])
  end
end

-- In order, each with the effects of those before it.
local function settle_in_turn()
  local ids = {}
  for _, s in ipairs(settlements) do
    ids[#ids + 1] = s[ID]
    for _, record in ipairs(s[SPAWN] or {}) do ids[#ids + 1] = record[1] end
  end
  load(ids)
  for i, s in ipairs(settlements) do settle(i, s, kept[s[ID]]) end
end

local sets, deletes, left, entered = {}, {}, {}, {}

-- The ordinary end of a claim: nothing has changed since, and nothing is held back.
local function settle_plainly(s, value, wake, fence, version, nl, at)
  local holder, id = s[HOLDER], s[ID]
  local lane = sub(value, at, at + nl - 1)
  let_go[holder] = (let_go[holder] or 0) + 1
  left[#left + 1] = lane .. moment(wake) .. id
  if s[KIND] == DELETE then
    deletes[#deletes + 1] = id
  else
    local till, cursor = s[WAKE_AT] or NEVER, s[CURSOR]
    local place, n = lane .. moment(till) .. id, #sets
    sets[n + 1] = id
    sets[n + 2] = pack(HEAD, till, fence, fence, 0, version, 0, nl, 0, #cursor) .. lane .. cursor
    entered[n + 1], entered[n + 2] = '0', place
    if till < NEVER and not (earliest[lane] and earliest[lane] < place) then earliest[lane] = place end
  end
  note(s[ENTRIES], fence)
end

-- Where each settlement is of another record and touches no other, they are independent: most are written without a change in
-- hand for each.
local function settle_apart(ids)
  local values = call('HMGET', jobs, unpack(ids))
  for i, s in ipairs(settlements) do
    local value, is_plain = values[i], false
    if value then
      local wake, fence, _, _, version, _, nl, nh, nc, at = parse(HEAD, value)
      is_plain = fence == s[FENCE] and version == s[VERSION] and nh == 0 and not s[HOLD] and s[KIND] ~= HAND_BACK
        and s[HOLDER] ~= '' and sub(value, at + nl + nc) == s[HOLDER]
      if is_plain then
        settle_plainly(s, value, wake, fence, version, nl, at)
        answers[i] = 'd'
      end
    end
    if not is_plain then
      kept[s[ID]] = value and read(s[ID], value)
      settle(i, s, kept[s[ID]])
    end
  end
  each('HSET', jobs, sets)
  each('HDEL', jobs, deletes)
  each('HDEL', fixed, deletes)
  each('ZREM', lanes, left)
  each('ZADD', lanes, entered)
end

local ids, seen, are_apart = {}, {}, true
for i, s in ipairs(settlements) do
  are_apart = are_apart and not s[SPAWN] and not s[UNPARK] and not seen[s[ID]]
  ids[i], seen[s[ID]] = s[ID], true
end
if are_apart then settle_apart(ids) else settle_in_turn() end
flush()
flush_log()
return hint(channel, sender) .. table.concat(answers)
