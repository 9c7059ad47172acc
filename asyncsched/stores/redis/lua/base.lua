-- What every script needs. Redis hashes each string that Lua makes, whole: so few are made, and none is made longer
-- than need be.

local call, pack, parse, sub, char = redis.call, struct.pack, struct.unpack, string.sub, string.char
local NEVER = math.huge

local function clock(given)
  if given then return given end
  local time = call('TIME')
  return (time[1] * 1000000 + time[2]) / 1000000
end

-- What was written stands, also where its user may not publish any more: a hint may be lost.
local function publish(channel, text)
  redis.pcall('PUBLISH', channel, text)
end

-- A number as a time in a member of a sorted set.
local function moment(at)
  return pack('>d', at > 0 and at or 0)
end

local function measured(text)
  return pack('>I2', #text) .. text
end

local function binary(text)
  local size = #text
  if size < 256 then return char(196, size) .. text end
  if size < 65536 then return pack('>BI2', 197, size) .. text end
  return pack('>BI4', 198, size) .. text
end

local function list_of(parts)
  return pack('>BI4', 221, #parts) .. table.concat(parts)
end

-- A command with any number of arguments; Lua passes some thousands at once.
local function each(command, key, list)
  for i = 1, #list, 4000 do
    call(command, key, unpack(list, i, math.min(i + 3999, #list)))
  end
end

