-- The provider refused a call with 429: end its lease, freeze the pool, and cut its rate once a burst.
--
-- KEYS     1 levels, 2 leases of the lane, 3 leases of the tenant, 4 the lease
-- ARGV[1]  {lease, retry_after_ms, now_ms?, resources: [{name, per_s, burst_s, used, limit_per_s?}]}
--          used: units that the provider charges for a refused call
-- Returns  {cut, factor}: whether this one cut the rate, and the share of the rate that is used now
--
-- A call that was granted before the last cut belongs to the same burst, and a lease that has ended was told of before.
-- There was less left than was thought: no level stays above zero.

-- include pool
-- include promises
local given = cjson.decode(ARGV[1])
local now = clock(given)
local held = redis.call('GET', KEYS[4])
redis.call('ZREM', KEYS[2], given.lease)
redis.call('ZREM', KEYS[3], given.lease)
redis.call('DEL', KEYS[4])
local lease = held and cjson.decode(held) or {amounts = {}, by_floor = {}}
local pool = open(KEYS[1], given.resources, now)
local cuts = held and lease.at > (pool.cut or -1) or false
if cuts then pool.factor, pool.cut = pool.factor * CUT, now end
pool.frozen = math.max(pool.frozen or 0, now + given.retry_after_ms)
for _, r in ipairs(given.resources) do
  local back = math.max(0, (lease.amounts[r.name] or 0) - r.used)
  r.level = math.min(0, r.level + back, highest_level(pool, r, now))
  r.granted = r.granted - back
  if lease.by_floor[r.name] then r.floor = r.floor + back end
  keep_no_more_than_there_is(r)
  if r.limit_per_s then pool[r.name .. '.limit'] = r.limit_per_s end
end
save(KEYS[1], pool, given.resources)
return cjson.encode({cut = cuts, factor = pool.factor})
