-- ARGV: {now, lease, {{id, fence, holder}, ..}}. Answers {now, a version or -1 for each}.

local given, lease, asked = unpack(cmsgpack.unpack(ARGV[1]), 1, 3)
local now = clock(given)
local ids, answers = {}, {}
for i, claim in ipairs(asked) do ids[i] = claim[1] end
load(ids)
for i, claim in ipairs(asked) do
  local r = kept[claim[1]]
  if r and r.fence == claim[2] and r.holder == claim[3] and r.holder ~= '' then
    answers[i] = cmsgpack.pack(r.version)
    if r.wake < now + lease then
      change(r.id)
      r.wake = now + lease
    end
  else
    answers[i] = '\255'
  end
end
flush()
return '\146' .. pack('>Bd', 203, now) .. list_of(answers)
