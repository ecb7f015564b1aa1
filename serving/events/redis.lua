-- Events in one Redis stream for all topics. `first` is a key with the first id that was not forgotten.
-- A stream's ids are text here: Lua's numbers are too short for them.

-- name: appending
local function append_event(stream, first, max_events, topic, kind, data)
  local length = redis.call('XLEN', stream)
  local new = redis.call('EXISTS', stream) == 0
  local id = redis.call('XADD', stream, 'MAXLEN', '~', max_events, '*', 't', topic, 'k', kind, 'd', data)
  if new then
    redis.call('SET', first, id)
  elseif redis.call('XLEN', stream) <= length then
    redis.call('SET', first, redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1])
  end
  return id
end

-- name: append
return append_event(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4])

-- name: latest
local function latest(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do if info[i] == 'last-generated-id' then return info[i + 1] end end
end

-- name: read
local stream, first = KEYS[1], KEYS[2]
local topic, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', stream) == 0 then return {false, '0-0', {}, after} end
local events, further = {}, false
if limit > 0 then
  local scanned = redis.call('XRANGE', stream, '(' .. after, '+', 'COUNT', 1000)
  further = #scanned == 1000 and scanned[1000][1] or false
  for _, entry in ipairs(scanned) do
    if topic == '' or entry[2][2] == topic then
      table.insert(events, {entry[1], entry[2][2], entry[2][4], entry[2][6]})
      if #events == limit then
        further = false
        break
      end
    end
  end
end
return {redis.call('GET', first), latest(stream), events, further}

-- name: prune
local stream, first, older = KEYS[1], KEYS[2], tonumber(ARGV[1])
if redis.call('EXISTS', stream) == 0 then return 0 end
local time = redis.call('TIME')
local oldest = string.format('%.0f', math.max(0, math.floor((tonumber(time[1]) + tonumber(time[2]) / 1e6 - older) * 1000)))
local gone = redis.call('XTRIM', stream, 'MINID', oldest)
if gone > 0 then
  local left = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if left then
    redis.call('SET', first, left[1])
  else
    local milliseconds, count = latest(stream):match('(%d+)-(%d+)')
    redis.call('SET', first, milliseconds .. '-' .. tonumber(count) + 1)
  end
end
return gone

-- name: drop
local stream, topic, gone, after = KEYS[1], ARGV[1], 0, '-'
while true do
  local scanned = redis.call('XRANGE', stream, after, '+', 'COUNT', 1000)
  for _, entry in ipairs(scanned) do
    if entry[2][2] == topic then gone = gone + redis.call('XDEL', stream, entry[1]) end
  end
  if #scanned < 1000 then return gone end
  after = '(' .. scanned[1000][1]
end
