-- ARGV: {now, channel, sender, hold, limit}. Answers the hint, and how many were unparked.

local given, channel, sender, hold, limit = unpack(cmsgpack.unpack(ARGV[1]), 1, 5)
local count = unpark(hold, limit, clock(given))
flush()
return hint(channel, sender) .. cmsgpack.pack(count)
