-- ARGV: ids. Answers the records that exist.

local ids, rows = cmsgpack.unpack(ARGV[1]), {}
load(ids)
for _, id in ipairs(ids) do
  if kept[id] then rows[#rows + 1] = row(kept[id]) end
end
return rows_of(rows)
