-- Look at what a lane could take of a quota pool within a time to come. Takes nothing; that batch waits can be noted.
--
-- KEYS     1 levels, 2 leases of lane interactive, 3 leases of lane batch
-- ARGV[1]  {lane, horizon_ms, is_waiting?, concurrency?, now_ms?, resources: [{name, per_s, burst_s}]}
-- Returns  {frozen_ms, factor, places?, room: {NAME: units}, most: {NAME: units}, per_s: {NAME: units}}
--          frozen_ms: how long nothing is granted; places: calls that may begin; room: below 0 in debt; most: the largest
--          room that there can be, for more than which a larger request need not wait

-- include pool
local given = cjson.decode(ARGV[1])
local now = clock(given)
local pool = open(KEYS[1], given.resources, now)
if given.is_waiting and given.lane == 'batch' then
  pool.batch = math.max(pool.batch or 0, now + BATCH_WANTS_MS)
  save(KEYS[1], pool, given.resources)
end
local frozen_ms = math.max(0, (pool.frozen or 0) - now)
local flowing_s = math.max(0, given.horizon_ms - frozen_ms) / 1000
local answer = {frozen_ms = frozen_ms, factor = pool.factor, room = {}, most = {}, per_s = {}}
for _, r in ipairs(given.resources) do
  local is_batch = given.lane == 'batch'
  local kept = is_batch and r.capacity * RESERVE or math.max(0, r.floor)
  local room = r.level - kept + flowing_s * r.rate
  if is_batch then room = math.max(room, r.floor + flowing_s * r.rate * FLOOR) end
  if frozen_ms > given.horizon_ms then room = math.min(0, room) end
  answer.room[r.name] = room
  answer.most[r.name], answer.per_s[r.name] = r.capacity - kept, r.rate
end
if given.concurrency then
  local interactive = redis.call('ZCOUNT', KEYS[2], '(' .. now, '+inf')
  local batch = redis.call('ZCOUNT', KEYS[3], '(' .. now, '+inf')
  answer.places = math.max(0, free_places(pool, given.lane, given.concurrency, interactive, batch, now))
end
return cjson.encode(answer)
