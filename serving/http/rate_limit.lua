-- Charges a client for one request, by the clock of Redis; all times are in microseconds.
-- KEYS[1]: the client's key. ARGV: the interval, the burst. Returns whether it is allowed, and the client's debt.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local debt = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) - now, 0)
if debt > interval * burst then debt = 0 end  -- nobody owes as much: the clock was ahead, and must lock nobody out
if debt > interval * (burst - 1) then return {0, debt} end
debt = debt + interval
redis.call('SET', KEYS[1], string.format('%.0f', now + debt), 'PX', math.ceil(debt / 1000))
return {1, debt}
