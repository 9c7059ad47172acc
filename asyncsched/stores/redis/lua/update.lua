-- ARGV: {now, channel, sender, {id, version, body, queue, priority, wake_at, hold, revoke, task}}. Answers the
-- hint, and both parts of the record, if the version matched.

local given, channel, sender, update = unpack(cmsgpack.unpack(ARGV[1]), 1, 4)
local id, version, body, queue, priority, wake_at, hold, revoke, task = unpack(update, 1, 9)
load({ id })
local r = kept[id]
if not r or r.version ~= version then return { pack('>d', NEVER) } end
change(id)
local _, _, birth, _, _, its_task = cmsgpack.unpack_limit(call('HGET', fixed, id), 5, 1)
r.fixed = '\150' .. cmsgpack.pack(id, birth, queue, priority, task or its_task) .. binary(body)
r.lane = lane_of(queue, priority)
r.version = r.version + 1
if r.holder == '' or revoke then
  r.hold = hold or ''
  r.wake = revoke and clock(given) or wake_at or NEVER
  forget_holder(r)
end
flush()
local told = hint(channel, sender)
if r.holder ~= '' then
  -- Whoever holds it is to look at it.
  publish(channel, sender .. ' -inf')
  told = pack('>d', -NEVER)
end
return answer_with({ told }, { id })
