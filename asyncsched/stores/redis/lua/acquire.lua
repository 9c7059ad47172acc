-- ARGV: {now, lease, holder, keys, seen, epoch, limit}. Answers {the last fence, {{key, fence, end}, ..}}.

local given, lease, holder, keys, seen, epoch, limit = unpack(cmsgpack.unpack(ARGV[1]), 1, 7)
local now = clock(given)
local rows = {}
local last = tonumber(call('HGET', meta, 'fence') or 0)
if last < seen then
  -- Writes were lost; the next claim of any client says so.
  last = seen + 1000000
  -- Higher than the one that this client knows, too: the server may have lost that.
  epoch = math.max(tonumber(call('HGET', meta, 'epoch') or 0), epoch or 0) + 1
  call('HSET', meta, 'fence', string.format('%.0f', last), 'epoch', epoch)
end

local function take(key, fence)
  if limit and #rows >= limit then return end
  if not fence then
    last = call('HINCRBY', meta, 'fence', 1)
    fence = last
  end
  keep(key, fence, now + lease, holder)
  rows[#rows + 1] = '\147' .. cmsgpack.pack(key) .. pack('>BI8Bd', 207, fence, 203, now + lease)
end

local free, seen_keys = {}, {}
for _, key in ipairs(keys) do
  if not seen_keys[key] then
    seen_keys[key] = true
    local fence, till, its_holder = find(key)
    if not fence or till <= now then
      free[#free + 1] = key
    elseif its_holder == holder then
      take(key, fence)
    end
  end
end
for _, key in ipairs(free) do take(key) end
return '\146' .. pack('>BI8', 207, last) .. list_of(rows)
