-- Named leases. KEYS: 1 leases  hash  key -> fence, end, holder
--                     2 meta

local leases, meta = KEYS[1], KEYS[2]

local function find(key)
  local value = call('HGET', leases, key)
  if not value then return nil end
  local fence, till, at = parse('>dd', value)
  return fence, till, sub(value, at)
end

local function keep(key, fence, till, holder)
  call('HSET', leases, key, pack('>dd', fence, till) .. holder)
end
