-- KEYS: 1 meta; 2 lanes. ARGV: {create, schema, layout, channel}. Answers {schema, layout, epoch, fence}, of what is there or was
-- just made.

local create, schema, layout, channel = unpack(cmsgpack.unpack(ARGV[1]), 1, 4)
local meta, lanes = KEYS[1], KEYS[2]
if create and not call('HGET', meta, 'schema') then
  call('HSET', meta, 'schema', schema, 'layout', layout)
end
local found = call('HMGET', meta, 'schema', 'layout', 'epoch', 'fence')

-- Who may not do one of these is to learn it now, and not from a script that is cut off behind its first writes. None of them
-- changes anything.
for _, command in ipairs({
  { 'HSET', meta, 'schema', found[1] or '' }, { 'HINCRBY', meta, 'fence', 0 }, { 'HDEL', meta, '' }, { 'HEXISTS', meta, '' },
  { 'ZADD', lanes, 'XX', 0, '' }, { 'ZREM', lanes, '' }, { 'ZRANGEBYLEX', lanes, '[', '[' }, { 'PUBLISH', channel, '' },
}) do
  local refusal = found[1] and redis.pcall(unpack(command))
  local said = type(refusal) == 'table' and refusal.err or ''
  if string.find(said, 'executing the script', 1, true) or string.find(said, 'ACL failure', 1, true) then
    return redis.error_reply(said .. ' (' .. command[1] .. ')')
  end
end
return '\148' .. (found[1] and cmsgpack.pack(tonumber(found[1])) or '\192') .. (found[2] and cmsgpack.pack(found[2]) or '\192')
  .. pack('>BI8BI8', 207, tonumber(found[3] or 0), 207, tonumber(found[4] or 0))
