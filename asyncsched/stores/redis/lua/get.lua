-- ARGV: ids. Answers both parts of each record that exists.

local ids, found = cmsgpack.unpack(ARGV[1]), {}
load(ids)
for _, id in ipairs(ids) do
  if kept[id] then found[#found + 1] = id end
end
return answer_with({}, found)
