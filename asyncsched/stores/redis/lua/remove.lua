-- ARGV: ids. Answers those that were found.

local ids, found = cmsgpack.unpack(ARGV[1]), {}
load(ids)
for _, id in ipairs(ids) do
  local r = kept[id]
  if r then
    change(id)
    forget_holder(r)
    kept[id] = false
    found[#found + 1] = cmsgpack.pack(id)
  end
end
flush()
return list_of(found)
