-- ARGV: {now, ended, cursor}: of some of the leases, from the cursor on, those that ended so many seconds ago are forgotten.
-- Answers the next cursor; '0' at the end.

local given, ended, cursor = unpack(cmsgpack.unpack(ARGV[1]), 1, 3)
local before = clock(given) - ended
local answer = call('HSCAN', leases, cursor, 'COUNT', 500)
local old = {}
for i = 1, #answer[2], 2 do
  local _, till = parse('>dd', answer[2][i + 1])
  if till < before then old[#old + 1] = answer[2][i] end
end
each('HDEL', leases, old)
return answer[1]
