-- Jobs in Redis. Each script is one step that no other client interrupts; it changes a job and appends its event.
--
-- KEYS: the prefix of all keys of jobs, the stream of events, the first event that was not forgotten.
-- After the prefix: `job:ID` is a hash of the job's fields, `input:ID` and `result:ID` are hashes of its chunks;
-- `due:OPERATION` holds queued jobs by the time they are due, `running` by the end of their lease, `finished` by
-- their end; `unique_key`, `mutex` and `idempotency_key` are hashes from such a key to the job that holds it;
-- `counts` has the jobs by state, `waiting` the queued ones by account, `held` the bytes of the inputs of unfinished ones by
-- account and, under `all`, of all; `operations` is a set; `schedule:NAME` is a hash of what is known of a schedule, and
-- `schedules` the set of their names.
-- Nothing expires, so a server that evicts only expiring keys (`volatile-lru`) loses no job. Times are the server's,
-- in seconds; fractions are passed as text, because Lua's own text of them is too short.
--
-- A server whose memory is full refuses new jobs only: all other scripts may exceed it, or a full queue could never
-- be worked off. That needs Redis 7 or Valkey.

-- name: common
local prefix = KEYS[1]
local function text(number) return string.format('%.6f', number) end
local function now() local t = redis.call('TIME') return tonumber(t[1]) + tonumber(t[2]) / 1e6 end
local function key(id) return prefix .. 'job:' .. id end
local function whole(id)
  local found = redis.pcall('HGETALL', key(id))
  return found.err and {} or found
end
local function set(id, ...) redis.call('HSET', key(id), ...) end
-- Something else than a job under its key has no fields.
local function get(id, ...)
  local found = redis.pcall('HMGET', key(id), ...)
  if found.err then return nil end
  return unpack(found)
end

-- Whether there is a whole job in this state: a server that evicts what has no time to live may have taken it, and others
-- may have written there.
local function is_whole(id, wanted)
  local function count(text) return text and text:match('^%d+$') end
  local state, operation, due, owner = get(id, 'state', 'operation', 'due', 'owner')
  local stalled, attempts, most, chunks = get(id, 'stalled', 'attempts', 'max_attempts', 'chunks')
  return state == wanted and operation and tonumber(due) and (owner or wanted == 'queued')
    and count(stalled) and count(attempts) and count(most) and count(chunks)
end

local function free(id, ...)
  for _, kind in ipairs({...}) do
    local name = get(id, kind)
    if name and redis.call('HGET', prefix .. kind, name) == id then redis.call('HDEL', prefix .. kind, name) end
  end
end

local function tell(id, kind, data)
  append_event(KEYS[2], KEYS[3], max_events, id, kind, data)
end

local function end_job(id, state, at)
  local error = state == 'failed' and get(id, 'error') or ''
  if error:find(lost, 1, true) == 1 then error = lost end  -- the name of the lease owner is not for clients
  redis.call('ZADD', prefix .. 'finished', text(at), id)
  set(id, 'finished', text(at))
  redis.call('UNLINK', prefix .. 'input:' .. id)
  free(id, 'unique_key', 'mutex')
  tell(id, state, '{"state":"' .. state .. '","error":' .. cjson.encode(error) .. '}')
end

-- Adds so many jobs to those that are waiting, and so many bytes to those that are held, of an account and of all.
local function count(account, jobs, bytes)
  local function add(name, field, number)
    if number ~= 0 and redis.call('HINCRBY', prefix .. name, field, number) <= 0 then
      redis.call('HDEL', prefix .. name, field)
    end
  end
  if account then
    add('waiting', account, jobs)
    add('held', account, bytes)
  end
  add('held', 'all', bytes)
end

local function recount()
  redis.call('UNLINK', prefix .. 'waiting', prefix .. 'held')
  local function add(set, jobs)
    for _, id in ipairs(redis.call('ZRANGE', prefix .. set, 0, -1)) do
      local account, bytes = get(id, 'account', 'input_bytes')
      count(account, jobs, tonumber(bytes or 0) or 0)
    end
  end
  for _, operation in ipairs(redis.call('SMEMBERS', prefix .. 'operations')) do add('due:' .. operation, 1) end
  add('running', 0)
end

local function place(id, state, at)
  local before, operation, account, bytes = get(id, 'state', 'operation', 'account', 'input_bytes')
  local ended = state ~= 'queued' and state ~= 'running'
  bytes = tonumber(bytes or 0) or 0
  count(account, (state == 'queued' and 1 or 0) - (before == 'queued' and 1 or 0),
    (ended and 0 or bytes) - (before and bytes or 0))
  if before then
    redis.call('HINCRBY', prefix .. 'counts', before, -1)
    redis.call('ZREM', before == 'queued' and prefix .. 'due:' .. operation or prefix .. before, id)
  end
  redis.call('HINCRBY', prefix .. 'counts', state, 1)
  set(id, 'state', state)
  if state == 'queued' then
    redis.call('ZADD', prefix .. 'due:' .. operation, text(at), id)
    set(id, 'due', text(at))
  elseif state == 'running' then
    redis.call('ZADD', prefix .. 'running', text(at), id)
  else
    end_job(id, state, at)
  end
end

local function remove(id)
  local state = get(id, 'state')
  if state then redis.call('HINCRBY', prefix .. 'counts', state, -1) end
  redis.call('ZREM', prefix .. 'finished', id)
  free(id, 'idempotency_key')
  redis.call('UNLINK', key(id), prefix .. 'result:' .. id)
end

local function holds(id, owner)
  local state, holder = get(id, 'state', 'owner')
  return state == 'running' and holder == owner
end

local function renew(id, lease, progress)
  redis.call('ZADD', prefix .. 'running', text(now() + lease), id)
  set(id, 'lease', text(lease))
  if progress > tonumber(get(id, 'progress')) then set(id, 'progress', text(progress)) end
  return get(id, 'cancelling') == '1' and 'cancelled' or 'held'
end

local function lose(id, at)
  local cancelling, stalled, most, owner, due = get(id, 'cancelling', 'stalled', 'max_attempts', 'owner', 'due')
  if not is_whole(id, 'running') then
    redis.call('ZREM', prefix .. 'running', id)
  elseif cancelling == '1' then
    place(id, 'cancelled', at)
  else
    set(id, 'error', lost .. ' ' .. owner)
    if tonumber(stalled) >= tonumber(most) then place(id, 'failed', at) else place(id, 'queued', tonumber(due)) end
  end
end

local function reap()
  local at = now()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'running', '-inf', text(at), 'LIMIT', 0, 100)) do
    lose(id, at)
  end
end

-- Gives up leases that end later than any can, and queued jobs that are due later: the clock ran ahead for a while.
local function mend_times(lease, longest, operations)
  local at, running = now(), prefix .. 'running'
  local far = redis.call('ZRANGEBYSCORE', running, text(at + 2 * lease), '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
  for i = 1, #far, 2 do
    local own = tonumber(get(far[i], 'lease') or nil)
    if own and tonumber(far[i + 1]) > at + 2 * own then lose(far[i], at) end
  end
  for _, operation in ipairs(operations) do
    while true do
      local last = redis.call('ZREVRANGE', prefix .. 'due:' .. operation, 0, 0, 'WITHSCORES')
      if not last[1] or tonumber(last[2]) <= at then break end
      local created, attempts = get(last[1], 'created', 'attempts')
      if not tonumber(created) then break end
      if tonumber(created) <= at and (attempts == '0' or tonumber(last[2]) <= at + longest) then break end
      place(last[1], 'queued', at)
    end
  end
end

-- What there is no room for: -1 for a job or -2 for its bytes among all, -3 or -4 among those of its account; 0 if there is room.
local function lacking(account, bytes, limits)
  local function number(name, field) return tonumber(redis.call('HGET', prefix .. name, field) or 0) or 0 end
  if number('counts', 'queued') >= limits[1] then return -1 end
  if bytes > 0 and number('held', 'all') + bytes > limits[2] then return -2 end
  if not account then return 0 end
  if number('waiting', account) >= limits[3] then return -3 end
  if bytes > 0 and number('held', account) + bytes > limits[4] then return -4 end
  return 0
end

-- Submits the request that begins at an argument: 1 and its id, 0 and the id of the job that a key belongs to, or what is lacking.
local function submit(first)
  local id, bytes, delay, fields = ARGV[first], tonumber(ARGV[first + 5]), tonumber(ARGV[first + 6]), ARGV[first + 7]
  local limits = {}
  for i = 1, 4 do limits[i] = tonumber(ARGV[first + i]) end
  if redis.call('EXISTS', key(id)) == 1 then return 1, id end
  local given, inputs = {}, first + 8 + tonumber(fields)
  for i = first + 8, inputs - 1, 2 do given[ARGV[i]] = ARGV[i + 1] end
  for _, kind in ipairs({'idempotency_key', 'unique_key', 'mutex'}) do
    local other = given[kind] and redis.call('HGET', prefix .. kind, given[kind])
    if other then return 0, other end
  end
  local room = lacking(given['account'], bytes, limits)
  if room < -1 and redis.call('SET', prefix .. 'recounted', '1', 'NX', 'EX', recount_seconds) then
    recount()
    room = lacking(given['account'], bytes, limits)
  end
  if room < 0 then return room, '' end
  local at = now()
  for name, value in pairs(given) do
    set(id, name, value)
    if name == 'idempotency_key' or name == 'unique_key' or name == 'mutex' then
      redis.call('HSET', prefix .. name, value, id)
    end
  end
  set(id, 'id', id, 'created', text(at), 'progress', '0', 'chunks_done', 0, 'attempts', 0, 'stalled', 0)
  set(id, 'cancelling', 0, 'input_bytes', bytes, 'result_bytes', 0)
  for i = inputs, #ARGV do redis.call('HSET', prefix .. 'input:' .. id, i - inputs, ARGV[i]) end
  redis.call('SADD', prefix .. 'operations', given['operation'])
  place(id, 'queued', at + delay)
  return 1, id
end

-- name: submit
local outcome, id = submit(1)
return {outcome, whole(id)}

-- name: fire
local name, seen, upto, idempotency_key, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local record, request = prefix .. 'schedule:' .. name, 6 + count
local last, before = unpack(redis.call('HMGET', record, 'last', 'job'))
if (last or '') ~= seen then return false end
if ARGV[request] then
  local outcome, id = submit(request)
  if outcome < 0 then return outcome end
  if get(id, 'idempotency_key') ~= idempotency_key then
    redis.call('HINCRBY', record, 'overlaps_prevented', 1)
  else
    local state = before and before ~= id and get(before, 'state')
    if state == 'queued' or state == 'running' then redis.call('HINCRBY', record, 'overlap_incidents', 1)
    elseif state then remove(before) end
    redis.call('HINCRBY', record, 'fired', 1)
    redis.call('HSET', record, 'job', id)
  end
end
redis.call('SADD', prefix .. 'schedules', name)
redis.call('HSET', record, 'last', upto)
for i = 6, request - 1, 2 do redis.call('HINCRBY', record, ARGV[i], ARGV[i + 1]) end
return redis.call('HGETALL', record)

-- name: pause
local name, paused = ARGV[1], ARGV[2]
local record = prefix .. 'schedule:' .. name
redis.call('SADD', prefix .. 'schedules', name)
redis.call('HSETNX', record, 'last', text(now()))
redis.call('HSET', record, 'paused', paused)
return redis.call('HGETALL', record)

-- name: schedules
local all = {}
for _, name in ipairs(redis.call('SMEMBERS', prefix .. 'schedules')) do
  table.insert(all, name)
  table.insert(all, redis.call('HGETALL', prefix .. 'schedule:' .. name))
end
return all

-- name: claim
local owner, lease, operations = ARGV[1], tonumber(ARGV[2]), {unpack(ARGV, 4)}
reap()
mend_times(lease, tonumber(ARGV[3]), operations)
local at, id, earliest = now(), nil, nil
for _, operation in ipairs(operations) do
  local first = redis.call('ZRANGEBYSCORE', prefix .. 'due:' .. operation, '-inf', text(at), 'WITHSCORES', 'LIMIT', 0, 1)
  if first[1] and (not earliest or tonumber(first[2]) < earliest) then id, earliest = first[1], tonumber(first[2]) end
end
if not id then return false end
if not is_whole(id, 'queued') then
  for _, operation in ipairs(operations) do redis.call('ZREM', prefix .. 'due:' .. operation, id) end  -- see `lose`
  return false
end
redis.call('HSETNX', key(id), 'started', text(at))
redis.call('HINCRBY', key(id), 'attempts', 1)
redis.call('HINCRBY', key(id), 'stalled', 1)
set(id, 'owner', owner, 'lease', text(lease))
place(id, 'running', at + lease)
return whole(id)

-- name: heartbeat
local id, owner, lease, progress = ARGV[1], ARGV[2], tonumber(ARGV[3]), math.min(tonumber(ARGV[4]), 1)
if not holds(id, owner) then return 'lost' end
local before = tonumber(get(id, 'progress'))
local answer = renew(id, lease, progress)
if answer == 'held' and math.floor(progress * 10000) > math.floor(before * 10000) then
  tell(id, 'progress', string.format('{"progress":%.4g}', progress))
end
return answer

-- name: checkpoint
local id, owner, lease, chunk, data = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
if not holds(id, owner) then return 'lost' end
local chunks = tonumber(get(id, 'chunks'))
if chunk < 0 or chunk >= chunks then return 'no such chunk' end
local progress = 0
if redis.call('HSETNX', prefix .. 'result:' .. id, chunk, data) == 1 then
  local done = redis.call('HINCRBY', key(id), 'chunks_done', 1)
  redis.call('HINCRBY', key(id), 'result_bytes', #data)
  progress = done / chunks
  set(id, 'stalled', 1)
  tell(id, 'chunk', string.format('{"chunk":%d,"chunks_done":%d,"chunks":%d}', chunk, done, chunks))
end
return renew(id, lease, progress)

-- name: finish
local id, owner = ARGV[1], ARGV[2]
local state, holder, chunks, done = get(id, 'state', 'owner', 'chunks', 'chunks_done')
if state == 'done' and holder == owner then return whole(id) end
if not holds(id, owner) then return false end
if tonumber(done) < tonumber(chunks) then return tonumber(chunks) - tonumber(done) end
set(id, 'progress', '1', 'error', '')
place(id, 'done', now())
return whole(id)

-- name: fail
local id, owner, error, permanent = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local first, longest, share = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if not holds(id, owner) then return false end
local stalled, most, cancelling = get(id, 'stalled', 'max_attempts', 'cancelling')
set(id, 'error', error)
if cancelling == '1' then place(id, 'cancelled', now())
elseif permanent or tonumber(stalled) >= tonumber(most) then place(id, 'failed', now())
else place(id, 'queued', now() + math.min(longest, first * 2 ^ (tonumber(stalled) - 1)) * (1 - share / 2)) end
return whole(id)

-- name: release
local id, owner = ARGV[1], ARGV[2]
if not holds(id, owner) then return false end
local stalled, cancelling, due = get(id, 'stalled', 'cancelling', 'due')
if cancelling == '1' then place(id, 'cancelled', now())
else
  set(id, 'stalled', math.max(0, tonumber(stalled) - 1))
  place(id, 'queued', tonumber(due))
end
return whole(id)

-- name: cancel
local id = ARGV[1]
reap()
if is_whole(id, 'queued') then place(id, 'cancelled', now()) elseif is_whole(id, 'running') then set(id, 'cancelling', 1) end
return whole(id)

-- name: delete_of
local client, sets, gone = ARGV[1], {'finished', 'running'}, {}
for _, operation in ipairs(redis.call('SMEMBERS', prefix .. 'operations')) do table.insert(sets, 'due:' .. operation) end
for _, set in ipairs(sets) do
  for _, id in ipairs(redis.call('ZRANGE', prefix .. set, 0, -1)) do
    if get(id, 'client') == client then
      if set ~= 'finished' then place(id, 'cancelled', now()) end
      remove(id)
      table.insert(gone, id)
    end
  end
end
return gone

-- name: get
return whole(ARGV[1])

-- name: detach
for i = 1, #ARGV, 2 do redis.call('HDEL', prefix .. ARGV[i], ARGV[i + 1]) end
return 1

-- name: input
return redis.call('HGET', prefix .. 'input:' .. ARGV[1], ARGV[2])

-- name: result
return redis.call('HGET', prefix .. 'result:' .. ARGV[1], ARGV[2])

-- name: missing
local chunks, missing = get(ARGV[1], 'chunks'), {}
if not chunks then return false end
local done = {}
for _, chunk in ipairs(redis.call('HKEYS', prefix .. 'result:' .. ARGV[1])) do done[tonumber(chunk)] = true end
for chunk = 0, tonumber(chunks) - 1 do if not done[chunk] then table.insert(missing, chunk) end end
return missing

-- name: counts
local at, waited = now(), 0
for _, operation in ipairs(redis.call('SMEMBERS', prefix .. 'operations')) do
  local first = redis.call('ZRANGE', prefix .. 'due:' .. operation, 0, 0, 'WITHSCORES')
  if first[2] then waited = math.max(waited, at - tonumber(first[2])) end
end
return {redis.call('HGETALL', prefix .. 'counts'), text(waited)}

-- name: risk
-- `seals` is a hash of the times at which services have looked, by the marks of the secrets that they sign with
local seconds, own, at, other = tonumber(ARGV[1]), {}, now(), 0
for i = 2, #ARGV do own[ARGV[i]] = true end
local seen = redis.pcall('HGETALL', prefix .. 'seals')
if not seen.err then
  for i = 1, #seen, 2 do
    if not own[seen[i]] and at - (tonumber(seen[i + 1]) or 0) < seconds then other = 1 end
  end
  redis.call('HSET', prefix .. 'seals', ARGV[2], text(at))
  redis.call('EXPIRE', prefix .. 'seals', seconds)
end
return {redis.call('INFO', 'memory'):match('maxmemory_policy:([%w-]+)') or '', other}

-- name: probe
local memory = redis.call('INFO', 'memory')
local most, used = tonumber(memory:match('maxmemory:(%d+)')), tonumber(memory:match('used_memory:(%d+)'))
-- what is written here may fit where no job does
if most and most > 0 and memory:find('maxmemory_policy:noeviction', 1, true) and most - used < tonumber(ARGV[1]) then
  return redis.error_reply('OOM memory is full: ' .. used .. ' of ' .. most .. ' bytes are in use')
end
redis.call('SET', prefix .. 'probe', 'written', 'EX', 60)
return 1

-- name: prune
local older, keep, keep_bytes, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local finished = prefix .. 'finished'
local old = redis.call('ZRANGEBYSCORE', finished, '-inf', '(' .. text(now() - older), 'LIMIT', 0, most)
if #old == 0 then
  -- of each job, newest first: how many of its account are not older, and how many bytes they have
  local jobs, own = {}, {}
  for i, id in ipairs(redis.call('ZREVRANGE', finished, 0, -1)) do
    local account, bytes = get(id, 'account', 'result_bytes')
    account, bytes = account or '', tonumber(bytes or 0) or 0
    local before = own[account] or {rank = 0, total = 0}
    own[account] = {id = id, place = i, bytes = bytes, rank = before.rank + 1, total = before.total + bytes}
    table.insert(jobs, own[account])
  end
  -- those whose account has few newer ones, or few bytes in newer ones, stay the longest
  local function drop(field, most_in_all, size)
    table.sort(jobs, function(a, b) return a[field] < b[field] or a[field] == b[field] and a.place < b.place end)
    local sum = 0
    for _, job in ipairs(jobs) do
      sum = sum + size(job)
      if sum > most_in_all and not job.dropped and #old < most then
        job.dropped = true
        table.insert(old, job.id)
      end
    end
  end
  drop('rank', keep, function() return 1 end)
  drop('total', keep_bytes, function(job) return job.bytes end)
end
for _, id in ipairs(old) do remove(id) end
return #old
