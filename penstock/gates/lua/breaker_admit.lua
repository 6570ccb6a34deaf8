-- ADMIT: may one call be made now?
--   KEYS[1]   {penstock:breaker:DEPLOYMENT}
--   ARGV[1]   {"ticket": the call's own id; asked again with the same id, a probe is given again,
--              "probe_ms": how long a probe may stay out before another one goes,
--              "now_ms": instead of Redis's clock, optional}
--   returns   {"epoch": what the report must carry, "is_probe": whether the call decides alone}
--             or, refused, {"wait_ms": until the cool-down ends; while a probe is out, which may end at any time, at
--             most a second}
-- include breaker_state
local LOOK_AGAIN_MS = 1000

if breaker.state == 'closed' then
  keep({epoch = breaker.epoch > 0 and breaker.epoch or now_ms})
  return cjson.encode({epoch = breaker.epoch, is_probe = false})
end

if breaker.prober ~= given.ticket then
  if now_ms < breaker.until_ms then
    local wait_ms = breaker.until_ms - now_ms
    return cjson.encode({wait_ms = breaker.state == 'open' and wait_ms or math.min(wait_ms, LOOK_AGAIN_MS)})
  end
  keep({
    state = 'half_open', epoch = breaker.epoch + 1, prober = given.ticket, until_ms = now_ms + given.probe_ms,
  })
end
return cjson.encode({epoch = breaker.epoch, is_probe = true})
