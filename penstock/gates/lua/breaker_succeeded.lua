-- SUCCEEDED: an admitted call found the deployment well. Of a probe this closes the breaker and clears what it counted.
--   KEYS[1]   {penstock:breaker:DEPLOYMENT}
--   ARGV[1]   {"ticket", "epoch": as admitted,
--              "window_ms": over which calls are counted,
--              "now_ms": instead of Redis's clock, optional}
--   returns   {"changed": whether this report closed it, also when it is repeated}
-- A report of another epoch changes nothing.
-- include breaker_state
-- include breaker_window

if is_news() and breaker.state == 'half_open' then
  redis.call('DEL', KEYS[1])
  keep({state = 'closed', epoch = breaker.epoch + 1, until_ms = 0, changer = given.ticket})
elseif is_news() then
  local name, value = counted(0)
  keep({[name] = value, streak = 0, recent = recent()})
end
return cjson.encode({changed = breaker.changer == given.ticket})
