-- Look at what a lane could take of a quota pool within a time to come. Changes nothing.
--
-- KEYS     1 levels, 2 leases of lane interactive, 3 leases of lane batch
-- ARGV[1]  {lane, horizon_ms, concurrency?, now_ms?, resources: [{name, per_s, burst_s}]}
-- Returns  {frozen_ms, factor, places?, room: {NAME: units}, most: {NAME: units}, per_s: {NAME: units}}
--          frozen_ms: how long nothing is granted; places: calls that may begin; room: 0 or more; most: the largest
--          room that there can be, for which a larger request need not wait

-- include pool
local given = cjson.decode(ARGV[1])
local now = clock(given)
local pool = open(KEYS[1], given.resources, now)
local frozen_ms = math.max(0, (pool.frozen or 0) - now)
local flowing_s = math.max(0, given.horizon_ms - frozen_ms) / 1000
local answer = {frozen_ms = frozen_ms, factor = pool.factor, room = {}, most = {}, per_s = {}}
for _, r in ipairs(given.resources) do
  local kept, free = math.max(0, r.floor), nil
  if given.lane == 'batch' then
    kept = r.capacity * RESERVE
    free = math.max(r.level - kept, r.floor)
  else
    free = r.level - kept
  end
  if frozen_ms > given.horizon_ms then free = 0 end
  answer.room[r.name] = math.max(0, free + flowing_s * r.rate)
  answer.most[r.name], answer.per_s[r.name] = r.capacity - kept, r.rate
end
if given.concurrency then
  local interactive = redis.call('ZCOUNT', KEYS[2], '(' .. now, '+inf')
  local batch = redis.call('ZCOUNT', KEYS[3], '(' .. now, '+inf')
  answer.places = math.max(0, free_places(pool, given.lane, given.concurrency, interactive, batch, now))
end
return cjson.encode(answer)
