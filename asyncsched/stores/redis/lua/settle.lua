-- ARGV: {now, channel, sender, settlements}. Answers the hint, and a letter for each settlement. A settlement is an array.

local ID, FENCE, HOLDER, VERSION, CURSOR, WAKE_AT, HOLD, DELETE, HAND_BACK, ENTRIES, SPAWN, UNPARK = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12

local given, channel, sender, settlements = unpack(cmsgpack.unpack(ARGV[1]), 1, 4)
local now = clock(given)

local function unpark(hold, limit)
  flush()
  local base, count = measured(hold), 0
  local from, to = '[' .. base, '(' .. base .. '\255'
  while count < limit do
    local places_in_order = call('ZRANGEBYLEX', holds, from, to, 'LIMIT', 0, math.min(limit, 100))
    if #places_in_order == 0 then return end
    local ids = {}
    for i, place in ipairs(places_in_order) do ids[i] = sub(place, #base + 9) end
    load(ids)
    for _, id in ipairs(ids) do
      local r = kept[id]
      if r and r.holder == '' and count < limit then
        change(id)
        r.hold, r.wake = '', now
        count = count + 1
      end
    end
    from = '(' .. places_in_order[#places_in_order]
  end
end

local function apply(s, r)
  local is_stale = r.version ~= s[VERSION]
  change(r.id)
  forget_holder(r)
  if s[DELETE] and not is_stale then
    kept[r.id] = false
  else
    if s[HAND_BACK] then
      r.tries = math.max(r.tries - 1, 0)
    else
      r.cursor, r.settled, r.tries = s[CURSOR], r.fence, 0
      if not is_stale then r.hold = s[HOLD] or '' end
    end
    r.prior = 0
    r.wake = is_stale and now or s[WAKE_AT] or NEVER
  end
  for _, record in ipairs(s[SPAWN]) do insert(record) end
  if s[UNPARK] then unpark(s[UNPARK][1], s[UNPARK][2]) end
  return is_stale and 's' or 'd'
end

local ids, answers = {}, {}
for i, s in ipairs(settlements) do
  ids[#ids + 1] = s[ID]
  for _, record in ipairs(s[SPAWN]) do ids[#ids + 1] = record[1] end
end
load(ids)
for i, s in ipairs(settlements) do
  local r = kept[s[ID]]
  if not r then
    answers[i] = 'g'
    note(s[ENTRIES])
  elseif r.fence ~= s[FENCE] or r.holder ~= s[HOLDER] then
    answers[i] = r.settled == s[FENCE] and 'a' or 'l'
  else
    answers[i] = apply(s, r)
    note(s[ENTRIES])
  end
end
flush()
flush_log()
return hint(channel, sender) .. table.concat(answers)
