-- ARGV: {now, channel, sender, update}. Answers the hint, and the record, if the version matched.

local a = cmsgpack.unpack(ARGV[1])
local given = a[4]
load({ given.id })
local r = kept[given.id]
if not r or r.version ~= given.version then return pack('>d', NEVER) .. rows_of({}) end
change(r.id)
local id, birth, _, _, task = cmsgpack.unpack(r.identity)
r.identity = cmsgpack.pack(id, birth, given.queue, given.priority, given.task or task)
r.lane = lane_of(given.queue, given.priority)
r.body = binary(given.body)
r.version = r.version + 1
if r.holder == '' or given.revoke then
  r.hold = given.hold or ''
  r.wake = given.revoke and clock(a[1] or nil) or given.wake_at or NEVER
  r.prior = 0
  forget_holder(r)
end
flush()
return hint(a[2], a[3]) .. rows_of({ row(r) })
