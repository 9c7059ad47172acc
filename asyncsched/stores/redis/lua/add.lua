-- ARGV: {channel, sender, records}. Answers the hint, and the ids that another birth holds.

local channel, sender, records = unpack(cmsgpack.unpack(ARGV[1]), 1, 3)
local ids, taken = {}, {}
for i, record in ipairs(records) do ids[i] = record[1] end
load(ids)
for _, record in ipairs(records) do
  if insert(record) then taken[#taken + 1] = cmsgpack.pack(record[1]) end
end
flush()
return hint(channel, sender) .. list_of(taken)
