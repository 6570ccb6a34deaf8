-- Take everything that a call needs of a quota pool, or nothing, and begin its lease.
--
-- KEYS     1 levels, 2 leases of lane interactive, 3 leases of lane batch, 4 leases of the tenant (zsets: lease by its
--          end in ms), 5 the lease (JSON)
-- ARGV[1]  {lease, lease_ms, lane, longest_wait_ms, concurrency?, tenant_concurrency?, now_ms?,
--          resources: [{name, amount, per_s, burst_s}]}
-- Returns  {granted: true, wait_ms}: taken now, to be sent after wait_ms, which is at most longest_wait_ms; longer only
--          for a batch request beyond what is kept for it, until the rest has flowed in
--          {granted: false, resource, wait_ms}: nothing taken; try again after wait_ms
--
-- Repeated for a lease that is held, it gives the same grant and takes nothing.

-- include pool
-- include promises
local given = cjson.decode(ARGV[1])
local now = clock(given)
local known = redis.call('GET', KEYS[5])
if known then
  return cjson.encode({granted = true, wait_ms = math.max(0, cjson.decode(known).send_at - now)})
end
local pool = open(KEYS[1], given.resources, now)
local is_batch = given.lane == 'batch'

local wait_ms, rest_ms, resource, by_floor = 0, 0, nil, {}
local function must_wait(name, ms)
  if ms > wait_ms then wait_ms, resource = ms, name end
end

if (pool.frozen or 0) > now then must_wait('frozen', pool.frozen - now) end
for _, r in ipairs(given.resources) do
  local lacking
  if is_batch then
    local reserve = r.capacity * RESERVE
    lacking = math.min(r.amount, r.capacity - reserve) + reserve - r.level
    local kept = math.min(r.amount, r.capacity - reserve)
    local lacking_of_floor = (kept - r.floor) / FLOOR
    by_floor[r.name] = lacking_of_floor < lacking
    if by_floor[r.name] then rest_ms = math.max(rest_ms, (math.min(r.amount, r.capacity) - kept) / r.rate * 1000) end
    lacking = math.min(lacking, lacking_of_floor)
  else
    local held = math.max(0, r.floor)
    lacking = math.min(r.amount, r.capacity - held) + held - r.level
    if batch_wants(pool, now) then lacking = lacking / (1 - FLOOR) end  -- what is kept grows meanwhile
  end
  must_wait(r.name, math.ceil(lacking / r.rate * 1000 - 1e-6))
end
if wait_ms <= given.longest_wait_ms then
  local interactive, batch = count_leases(KEYS[2], given.lease_ms, now), count_leases(KEYS[3], given.lease_ms, now)
  local of_tenant = count_leases(KEYS[4], given.lease_ms, now)
  if given.concurrency and free_places(pool, given.lane, given.concurrency, interactive, batch, now) < 1 then
    wait_ms, resource = given.longest_wait_ms + 1, 'concurrency'
  elseif given.tenant_concurrency and of_tenant >= given.tenant_concurrency then
    wait_ms, resource = given.longest_wait_ms + 1, 'tenant_concurrency'
  end
end
if is_batch then pool.batch = math.max(pool.batch or 0, now + wait_ms + BATCH_WANTS_MS) end
if wait_ms > given.longest_wait_ms then
  save(KEYS[1], pool, given.resources)
  return cjson.encode({granted = false, resource = resource, wait_ms = wait_ms})
end

wait_ms = wait_ms + math.ceil(rest_ms)
local lease = {lane = given.lane, at = now, send_at = now + wait_ms, amounts = {}, granted = {}, by_floor = by_floor}
for _, r in ipairs(given.resources) do
  local flowing = r.rate * wait_ms / 1000
  r.level = math.min(r.level, r.capacity - flowing) - r.amount  -- what flows in until it is sent must have room
  r.granted = r.granted + r.amount
  if wait_ms > 0 then promise(pool, r, r.amount, now + wait_ms, now) end
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
