-- KEYS: 1 meta. ARGV: {fence}. Later fences are higher than this one, which came with a record from another store.

local floor = cmsgpack.unpack(ARGV[1])[1]
if tonumber(call('HGET', KEYS[1], 'fence') or 0) < floor then
  call('HSET', KEYS[1], 'fence', string.format('%.0f', floor))
end
return floor
