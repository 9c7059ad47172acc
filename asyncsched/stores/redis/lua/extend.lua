-- ARGV: {now, lease, {{key, holder, fence, end}, ..}}. Answers {{key, fence, end}, ..} of those that are held still.

local given, lease, held = unpack(cmsgpack.unpack(ARGV[1]), 1, 3)
local till = clock(given) + lease
local rows = {}
for _, claim in ipairs(held) do
  local fence, there, holder = find(claim[1])
  if fence == claim[3] and holder == claim[2] then
    if there < till then
      there = till
      keep(claim[1], fence, till, holder)
    end
    rows[#rows + 1] = '\147' .. cmsgpack.pack(claim[1]) .. pack('>BI8Bd', 207, fence, 203, there)
  end
end
return list_of(rows)
