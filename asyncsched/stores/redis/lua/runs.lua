-- ARGV: {job, kinds, limit, behind, budget, bytes}. Answers {is_done, the last place that was looked at, entries}, newest first.

local job, kinds, limit, behind, budget, room = unpack(cmsgpack.unpack(ARGV[1]), 1, 6)
local key, base = times, ''
if job then key, base = of_jobs, measured(job) end
local from, to = behind and '(' .. behind or job and '(' .. base .. '\255' or '+', job and '[' .. base or '-'
local wanted
if kinds then
  wanted = {}
  for _, kind in ipairs(kinds) do wanted[kind] = true end
end

local rows, looked, size, last, is_done = {}, 0, 0, behind, false
while #rows < limit and looked < budget and size < room do
  local places = call('ZREVRANGEBYLEX', key, from, to, 'LIMIT', 0, 100)
  for _, place in ipairs(places) do
    local at, rest, its_job
    if job then
      at, its_job, rest = sub(place, #base + 1, #base + 8), job, sub(place, #base + 9)
    else
      local zero = string.find(place, '\0', 9, true)
      at, its_job, rest = sub(place, 1, 8), sub(place, 9, zero - 1), sub(place, zero + 1)
    end
    local kind = sub(rest, 9, -10)
    if #rows < limit and size < room then
      last = place
      if not wanted or wanted[kind] then
        local body = call('HGET', log, its_job .. '\0' .. rest) or ''
        rows[#rows + 1] = '\150' .. cmsgpack.pack(its_job) .. pack('>BI8', 207, (parse('>d', rest)))
          .. cmsgpack.pack(kind) .. '\203' .. sub(rest, -8) .. '\203' .. at .. binary(body)
        size = size + #body
      end
    end
  end
  looked = looked + #places
  if #places < 100 then
    is_done = size < room
    break
  end
  from = '(' .. places[#places]
end
return '\147' .. ((is_done or #rows >= limit) and '\195' or '\194') .. binary(last or '') .. list_of(rows)
