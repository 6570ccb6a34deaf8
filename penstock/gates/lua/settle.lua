-- End a lease: give back what the provider gives back, and believe what it reports.
--
-- KEYS     1 levels, 2 leases of the lane, 3 leases of the tenant, 4 the lease
-- ARGV[1]  {lease, now_ms?, resources: [{name, per_s, burst_s, used?, limit_per_s?, remaining?}]}
--          used: units really charged (all that was taken if it is not given); limit_per_s, remaining: as the provider
--          reported them when it took the call
-- Returns  {settled}: false when the lease was settled before, or has run out
--
-- What the provider has left now is what it had left then, what has flown in since, less what was granted since. The
-- level may be lower than that, never higher.

-- include pool
-- include promises
local given = cjson.decode(ARGV[1])
local now = clock(given)
local held = redis.call('GET', KEYS[4])
redis.call('ZREM', KEYS[2], given.lease)
redis.call('ZREM', KEYS[3], given.lease)
if not held then return cjson.encode({settled = false}) end
redis.call('DEL', KEYS[4])
local lease = cjson.decode(held)
local pool = open(KEYS[1], given.resources, now)
for _, r in ipairs(given.resources) do
  local amount = lease.amounts[r.name]
  local back = amount and amount - (r.used or amount) or 0
  if r.used == 0 and now < lease.send_at then promise(pool, r, -back, lease.send_at, now) end  -- it is never sent
  r.level = math.min(r.level + back, highest_level(pool, r, now))
  r.granted = r.granted - back
  if lease.by_floor[r.name] then r.floor = r.floor + back end
  if r.limit_per_s then pool[r.name .. '.limit'] = r.limit_per_s end
  if r.remaining and lease.granted[r.name] then
    local since_s = math.max(0, now - lease.send_at) / 1000
    local taken_since = r.granted - (lease.granted[r.name] - back)
    local left = r.remaining + since_s * r.rate - taken_since
    if left < r.level then
      r.level = left
      keep_no_more_than_there_is(r)
    end
  end
end
save(KEYS[1], pool, given.resources)
return cjson.encode({settled = true})
