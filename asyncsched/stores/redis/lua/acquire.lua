-- ARGV: {now, lease, holder, keys, seen}. Answers {the last fence, {{key, fence, end}, ..}}.

local given, lease, holder, keys, seen = unpack(cmsgpack.unpack(ARGV[1]), 1, 5)
local now = clock(given)
local rows = {}
local last = tonumber(call('HGET', meta, 'fence') or 0)
if last < seen then
  -- Writes were lost; the next claim of any client says so.
  last = seen + 1000000
  call('HSET', meta, 'fence', string.format('%.0f', last))
  call('HINCRBY', meta, 'epoch', 1)
end
for _, key in ipairs(keys) do
  local fence, till, its_holder = find(key)
  local is_free = not fence or till <= now
  if is_free or its_holder == holder then
    if is_free then
      last = call('HINCRBY', meta, 'fence', 1)
      fence = last
    end
    keep(key, fence, now + lease, holder)
    rows[#rows + 1] = '\147' .. cmsgpack.pack(key) .. pack('>BI8Bd', 207, fence, 203, now + lease)
  end
end
return '\146' .. pack('>BI8', 207, last) .. list_of(rows)
