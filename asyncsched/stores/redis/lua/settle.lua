-- ARGV: {now, channel, sender, settlements}. Answers the hint, and a letter for each settlement.

local given, channel, sender, settlements = unpack(cmsgpack.unpack(ARGV[1]))
local now = clock(given or nil)

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
  local is_stale = r.version ~= s.version
  change(r.id)
  forget_holder(r)
  if s.delete and not is_stale then
    kept[r.id] = false
  else
    if s.hand_back then
      r.tries = math.max(r.tries - 1, 0)
    else
      r.cursor, r.settled, r.tries = binary(s.cursor), r.fence, 0
      if not is_stale then r.hold = s.hold or '' end
    end
    r.prior = 0
    r.wake = is_stale and now or s.wake_at or NEVER
  end
  for _, record in ipairs(s.spawn) do insert(record) end
  if s.unpark then unpark(s.unpark[1], s.unpark[2]) end
  return is_stale and 's' or 'd'
end

local ids, answers = {}, {}
for i, s in ipairs(settlements) do
  ids[#ids + 1] = s.id
  for _, record in ipairs(s.spawn) do ids[#ids + 1] = record.id end
end
load(ids)
for i, s in ipairs(settlements) do
  local r = kept[s.id]
  if not r then
    answers[i] = 'g'
    note(s.entries)
  elseif r.fence ~= s.fence or r.holder ~= s.holder then
    answers[i] = r.settled == s.fence and 'a' or 'l'
  else
    answers[i] = apply(s, r)
    note(s.entries)
  end
end
flush()
flush_log()
return hint(channel, sender) .. table.concat(answers)
