-- Extend the leases of one process in one quota pool; those that a Redis which was emptied has forgotten begin anew.
--
-- KEYS     1 leases of lane interactive, 2 leases of lane batch, then for each lease: the lease, the leases of its tenant
-- ARGV[1]  {lease_ms, now_ms?, leases: [{id, lane}]}
-- Returns  {extended, renewed}: how many were there, how many were not

-- include pool
local given = cjson.decode(ARGV[1])
local now = clock(given)
local extended, renewed = 0, 0
for i, lease in ipairs(given.leases) do
  local key, of_tenant = KEYS[1 + 2 * i], KEYS[2 + 2 * i]
  if redis.call('PEXPIRE', key, given.lease_ms) == 1 then
    extended = extended + 1
  else
    renewed = renewed + 1
    local empty = {lane = lease.lane, at = now, send_at = now, amounts = {}, granted = {}, by_floor = {}}
    redis.call('SET', key, cjson.encode(empty), 'PX', given.lease_ms)
  end
  for _, leases in ipairs({lease.lane == 'batch' and KEYS[2] or KEYS[1], of_tenant}) do
    redis.call('ZADD', leases, now + given.lease_ms, lease.id)
    redis.call('PEXPIRE', leases, TTL_MS)
  end
end
return cjson.encode({extended = extended, renewed = renewed})
