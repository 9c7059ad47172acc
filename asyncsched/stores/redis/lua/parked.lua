-- So many records with that hold, the earliest first, become due and lose it; say how many.
local function unpark(hold, limit, now)
  flush()
  local base, count = measured(hold), 0
  local from, to = '[' .. base, '(' .. base .. '\255'
  while count < limit do
    local places_in_order = call('ZRANGEBYLEX', holds, from, to, 'LIMIT', 0, math.min(limit, 100))
    if #places_in_order == 0 then break end
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
  return count
end
