-- KEYS[1]: arrived. ARGV: {now, kept, queue, keys}: what came from that queue is not there any more, and may be forgotten after so
-- many seconds.

local given, kept_s, queue, keys = unpack(cmsgpack.unpack(ARGV[1]), 1, 4)
local till, base = string.format('%.17g', clock(given) + kept_s), measured(queue)
for _, key in ipairs(keys) do call('ZADD', KEYS[1], 'XX', till, base .. key) end
return ''
