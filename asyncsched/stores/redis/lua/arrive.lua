-- KEYS[7]: arrived. ARGV: {now, kept, channel, sender, queue, {{key, record}, ..}}: records that were sent from that queue. One that
-- came before is left out, though it may be gone by now: it is remembered for so many seconds. Answers the hint.

local given, kept_s, channel, sender, queue, sent = unpack(cmsgpack.unpack(ARGV[1]), 1, 6)
local now, base = clock(given), measured(queue)
local ids, fresh, marks = {}, {}, {}
call('ZREMRANGEBYSCORE', KEYS[7], '-inf', string.format('%.17g', now))
for _, pair in ipairs(sent) do
  local mark = base .. pair[1]
  if not call('ZSCORE', KEYS[7], mark) then
    fresh[#fresh + 1], ids[#ids + 1] = pair[2], pair[2][1]
    local n = #marks
    marks[n + 1], marks[n + 2] = string.format('%.17g', now + kept_s), mark
  end
end
load(ids)
for _, record in ipairs(fresh) do insert(record) end
flush()
each('ZADD', KEYS[7], marks)
return hint(channel, sender)
