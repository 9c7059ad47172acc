-- ARGV: {queue, task, hold, id prefix, limit, behind, budget, bytes}. Answers msgpack of
-- {is_done, the last place that was looked at}, then both parts of each record.
-- The places of all lanes are merged, by time and id; the lanes are found by one probe each.

local queue, task, hold, prefix, limit, behind, budget, room = unpack(cmsgpack.unpack(ARGV[1]), 1, 8)
local sources = {}

local function source(key, base)
  sources[#sources + 1] = {
    key = key, base = base, from = behind and '(' .. base .. behind or '[' .. base, at = 1, places = {},
  }
end

if hold and hold ~= '' then
  source(holds, measured(hold))
else
  local from = queue and '[' .. measured(queue) or '-'
  local to = queue and '(' .. measured(queue) .. '\255' or '+'
  while true do
    local first = call('ZRANGEBYLEX', lanes, from, to, 'LIMIT', 0, 1)[1]
    if not first then break end
    local lane = sub(first, 1, parse('>I2', first) + 3)
    source(lanes, lane)
    from = '(' .. lane .. '\255'
  end
end

-- The first place of a source behind its lane, or nil.
local function head(s)
  if not s.places[s.at] and not s.is_empty then
    s.places, s.at = call('ZRANGEBYLEX', s.key, s.from, '(' .. s.base .. '\255', 'LIMIT', 0, 100), 1
    if #s.places == 0 then
      s.is_empty = true
    else
      s.from = '(' .. s.places[#s.places]
    end
  end
  return s.places[s.at] and sub(s.places[s.at], #s.base + 1)
end

local function matches(r, part)
  if hold and r.hold ~= hold then return false end
  if not queue and not task then return true end
  local _, _, _, its_queue, _, its_task = cmsgpack.unpack_limit(part, 5, 1)
  return (not queue or its_queue == queue) and (not task or its_task == task)
end

local looked, size, last, count, is_done, is_cut = 0, 0, behind, 0, false, false
local answer = { false }
local picked = {}

local function look_at_picked()
  local ids = {}
  for i, place in ipairs(picked) do ids[i] = sub(place, 9) end
  if #ids == 0 then return end
  load(ids)
  local parts = call('HMGET', fixed, unpack(ids))
  for i, id in ipairs(ids) do
    if count >= limit then return end
    if size >= room then
      is_cut = true
      return
    end
    local r, part = kept[id], parts[i]
    last = picked[i]
    if r and part and matches(r, part) then
      count = count + 1
      answer[2 * count], answer[2 * count + 1] = part, written(r)
      size = size + #part + #answer[2 * count + 1]
    end
  end
  picked = {}
end

while count < limit and size < room and looked < budget and not is_done do
  local best
  for _, s in ipairs(sources) do
    s.head = s.head or head(s)
    if s.head and (not best or s.head < best.head) then best = s end
  end
  looked = looked + 1 + #sources / 10
  if best then
    local place = best.head
    best.at, best.head = best.at + 1, nil
    if not prefix or sub(place, 9, 8 + #prefix) == prefix then
      picked[#picked + 1] = place
    elseif #picked == 0 then
      last = place
    end
  end
  if not best or #picked >= 50 or #picked >= limit - count then look_at_picked() end
  is_done = not best
end
look_at_picked()
is_done = (is_done and not is_cut) or count >= limit
answer[1] = '\146' .. (is_done and '\195' or '\194') .. binary(last or '')
return answer
