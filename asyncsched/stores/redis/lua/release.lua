-- ARGV: {{key, holder, fence, end}, ..}.

for _, claim in ipairs(cmsgpack.unpack(ARGV[1])) do
  local fence, _, holder = find(claim[1])
  if fence == claim[3] and holder == claim[2] then call('HDEL', leases, claim[1]) end
end
return ''
