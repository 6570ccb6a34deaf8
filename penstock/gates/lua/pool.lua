-- A quota pool brought up to now. Included by every script of the limiter.
--
-- levels (hash): `at` ms of the last look; `factor` share of the rate that is used, cut by a 429; `cut` ms
-- of the last cut; `frozen` ms until which nothing is granted; `batch` ms until which batch is thought to want some; and
-- per resource R `R.level` units that may be taken, negative in debt or when they are promised; `R.floor` units of it
-- that are kept for batch, which flow in only while batch wants some; `R.granted` units ever granted, less what was given
-- back; `R.limit` units a second that the provider reported.
local RESERVE, FLOOR = 0.2, 0.11
local CUT, RECOVERY_PER_S, QUIET_MS = 0.95, 0.002, 10000
local FIRST_S = 1
local BATCH_WANTS_MS = 5000
local TTL_MS = 600000

local function clock(given)
  if given.now_ms then return given.now_ms end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function batch_wants(pool, now)
  return now < (pool.batch or 0)
end

-- Give the pool's fields, and complete each resource by rate and capacity (units a second, units), level and floor.
local function open(key, resources, now)
  local pool, raw = {}, redis.call('HGETALL', key)
  for i = 1, #raw, 2 do pool[raw[i]] = tonumber(raw[i + 1]) or raw[i + 1] end
  local elapsed_s = math.max(0, now - (pool.at or now)) / 1000
  local quiet_s = math.max(0, now - math.max(pool.at or now, (pool.cut or -QUIET_MS) + QUIET_MS)) / 1000
  pool.factor = math.min(1, (pool.factor or 1) + RECOVERY_PER_S * quiet_s)
  for _, r in ipairs(resources) do
    r.rate = math.min(r.per_s, pool[r.name .. '.limit'] or r.per_s) * pool.factor
    r.capacity = math.max(1, r.rate * r.burst_s)
    local level = pool[r.name .. '.level'] or math.max(1, math.min(r.capacity, r.rate * FIRST_S))
    r.level = math.min(r.capacity, level + elapsed_s * r.rate)
    local floor = (pool[r.name .. '.floor'] or 0) + elapsed_s * r.rate * FLOOR
    r.floor = math.min(r.capacity * (1 - RESERVE), floor)
    if not batch_wants(pool, now) then r.floor = math.min(r.floor, 0) end
    r.granted = pool[r.name .. '.granted'] or 0
  end
  pool.at = now
  return pool
end

local function save(key, pool, resources)
  for _, r in ipairs(resources) do
    pool[r.name .. '.level'], pool[r.name .. '.floor'], pool[r.name .. '.granted'] = r.level, r.floor, r.granted
  end
  local fields = {}
  for name, value in pairs(pool) do
    fields[#fields + 1] = name
    fields[#fields + 1] = type(value) == 'number' and string.format('%.6f', value) or value
  end
  redis.call('HSET', key, unpack(fields))
  redis.call('PEXPIRE', key, TTL_MS + math.max(0, math.ceil((pool.frozen or 0) - pool.at)))
end

-- What is kept for batch must be there: no more of it than there is, or will be when what flows in has come.
local function keep_no_more_than_there_is(r, flowing)
  r.floor = math.min(r.floor, math.max(0, r.level + (flowing or 0)))
end

-- Count the leases of a key that have not run out, and drop the others: those of a clock that was ahead, too.
local function count_leases(key, lease_ms, now)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', key, '(' .. (now + lease_ms), '+inf')
  return redis.call('ZCARD', key)
end

-- How many calls may be in flight more, for a lane; `interactive` and `batch` are those that are.
local function free_places(pool, lane, concurrency, interactive, batch, now)
  local free = concurrency - interactive - batch
  local floor = concurrency > 1 and math.max(1, math.floor(concurrency * FLOOR)) or 0
  if lane == 'batch' then
    local unreserved = math.max(1, math.floor(concurrency * (1 - RESERVE))) - interactive - batch
    return math.min(free, math.max(unreserved, floor - batch))
  end
  if batch_wants(pool, now) then free = free - math.max(0, floor - batch) end
  return free
end
