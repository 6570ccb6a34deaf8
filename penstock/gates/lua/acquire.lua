-- Take everything that a call needs of a quota pool, or nothing, and begin its lease.
--
-- KEYS     1 levels, 2 leases of lane interactive, 3 leases of lane batch, 4 leases of the tenant (zsets: lease by its
--          end in ms), 5 the lease (JSON)
-- ARGV[1]  {lease, lease_ms, lane, longest_wait_ms, concurrency?, tenant_concurrency?, now_ms?,
--          resources: [{name, amount, per_s, burst_s}]}
-- Returns  {granted: true, wait_ms}: taken now, to be sent after wait_ms, which is at most longest_wait_ms
--          {granted: false, resource, wait_ms}: nothing taken; try again after wait_ms
--
-- Repeated for a lease that is held, it gives the same grant and takes nothing.

-- include pool
local given = cjson.decode(ARGV[1])
local now = clock(given)
local known = redis.call('GET', KEYS[5])
if known then
  return cjson.encode({granted = true, wait_ms = math.max(0, cjson.decode(known).send_at - now)})
end
local pool = open(KEYS[1], given.resources, now)
local is_batch = given.lane == 'batch'

local wait_ms, resource, by_floor = 0, nil, {}
local function must_wait(name, ms)
  if ms > wait_ms then wait_ms, resource = ms, name end
end

if (pool.frozen or 0) > now then must_wait('frozen', pool.frozen - now) end
for _, r in ipairs(given.resources) do
  local lacking
  if is_batch then
    local reserve = r.capacity * RESERVE
    lacking = math.min(r.amount, r.capacity - reserve) + reserve - r.level
    local lacking_of_floor = (math.min(r.amount, r.capacity * (1 - RESERVE)) - r.floor) / FLOOR
    by_floor[r.name] = lacking_of_floor < lacking
    lacking = math.min(lacking, lacking_of_floor)
  else
    local held = math.max(0, r.floor)
    lacking = math.min(r.amount, r.capacity - held) + held - r.level
    if batch_wants(pool, now) then lacking = lacking / (1 - FLOOR) end  -- what is kept grows meanwhile
  end
  must_wait(r.name, math.ceil(lacking / r.rate * 1000 - 1e-6))
end
if wait_ms <= given.longest_wait_ms then
  for i = 2, 4 do
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '(' .. (now + given.lease_ms), '+inf')  -- of a clock that was ahead
  end
  local interactive, batch = redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3])
  if given.concurrency and free_places(pool, given.lane, given.concurrency, interactive, batch, now) < 1 then
    wait_ms, resource = given.longest_wait_ms + 1, 'concurrency'
  elseif given.tenant_concurrency and redis.call('ZCARD', KEYS[4]) >= given.tenant_concurrency then
    wait_ms, resource = given.longest_wait_ms + 1, 'tenant_concurrency'
  end
end
if is_batch then pool.batch = math.max(pool.batch or 0, now + wait_ms + BATCH_WANTS_MS) end
if wait_ms > given.longest_wait_ms then
  save(KEYS[1], pool, given.resources)
  return cjson.encode({granted = false, resource = resource, wait_ms = wait_ms})
end

local lease = {lane = given.lane, at = now, send_at = now + wait_ms, amounts = {}, granted = {}, by_floor = by_floor}
for _, r in ipairs(given.resources) do
  local flowing = r.rate * wait_ms / 1000
  r.level = math.min(r.level, r.capacity - flowing) - r.amount  -- what flows in until it is sent must have room
  r.granted = r.granted + r.amount
  if by_floor[r.name] then r.floor = r.floor - r.amount
  elseif is_batch then r.floor = math.max(math.min(r.floor, 0), r.floor - r.amount)
  else keep_no_more_than_there_is(r, flowing) end
  lease.amounts[r.name], lease.granted[r.name] = r.amount, r.granted
end
save(KEYS[1], pool, given.resources)
redis.call('SET', KEYS[5], cjson.encode(lease), 'PX', given.lease_ms)
for _, key in ipairs({is_batch and KEYS[3] or KEYS[2], KEYS[4]}) do
  redis.call('ZADD', key, now + given.lease_ms, given.lease)
  redis.call('PEXPIRE', key, TTL_MS)
end
return cjson.encode({granted = true, wait_ms = wait_ms})
