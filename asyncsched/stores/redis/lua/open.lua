-- KEYS: 1 meta. ARGV: {create, schema, layout}. Answers {schema, layout, epoch, fence}, of what is there or was just made.

local create, schema, layout = unpack(cmsgpack.unpack(ARGV[1]), 1, 3)
local meta = KEYS[1]
if create and not call('HGET', meta, 'schema') then
  call('HSET', meta, 'schema', schema, 'layout', layout)
end
local found = call('HMGET', meta, 'schema', 'layout', 'epoch', 'fence')
return '\148' .. (found[1] and cmsgpack.pack(tonumber(found[1])) or '\192') .. (found[2] and cmsgpack.pack(found[2]) or '\192')
  .. pack('>BI8BI8', 207, tonumber(found[3] or 0), 207, tonumber(found[4] or 0))
