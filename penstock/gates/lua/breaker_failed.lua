-- FAILED: an admitted call found the deployment ill. Of a probe this opens the breaker again; of another call it does
-- when the failures in a row, or their share of the window, are enough.
--   KEYS[1]   {penstock:breaker:DEPLOYMENT}
--   ARGV[1]   {"ticket", "epoch": as admitted,
--              "consecutive_failures": in a row, that open,
--              "failure_ratio", "minimum_calls", "window_ms": the share of how many calls in which time that opens,
--              "cool_down_ms", "longest_cool_down_ms": the first, doubled at each opening up to the longest,
--              "jitter": in [0, 1), becomes a factor in [0.8, 1.2),
--              "now_ms": instead of Redis's clock, optional}
--   returns   {"changed": whether this report opened it, also when it is repeated}
-- A report of another epoch changes nothing.
-- include breaker_state
-- include breaker_window

if is_news() then
  local name, value = counted(1)
  keep({[name] = value, streak = breaker.streak + 1, recent = recent()})

  local calls, failures = window()
  if
    breaker.state == 'half_open'
    or breaker.streak >= given.consecutive_failures
    or (calls >= given.minimum_calls and failures / calls >= given.failure_ratio)
  then
    local cool_down_ms = math.min(given.cool_down_ms * 2 ^ breaker.openings, given.longest_cool_down_ms)
    keep({
      state = 'open',
      epoch = breaker.epoch + 1,
      until_ms = now_ms + math.floor(cool_down_ms * (0.8 + 0.4 * given.jitter) + 0.5),
      openings = breaker.openings + 1,
      prober = '',
      changer = given.ticket,
    })
  end
end
return cjson.encode({changed = breaker.changer == given.ticket})
