-- STATUS: how the breaker stands; changes nothing.
--   KEYS[1]   {penstock:breaker:DEPLOYMENT}
--   ARGV[1]   {"window_ms": over which calls are counted,
--              "now_ms": instead of Redis's clock, optional}
--   returns   {"state": closed, open, or half_open (the cool-down is over, whether a probe is out or not),
--              "wait_ms": until a call may be admitted, 0 when it may now,
--              "streak": failures in a row,
--              "calls", "failures": in the window; it stands still while the breaker is not closed, and ages,
--              "openings": since it was last closed}
-- include breaker_state
-- include breaker_window

local wait_ms = math.max(0, breaker.until_ms - now_ms)
local calls, failures = window()
return cjson.encode({
  state = breaker.state == 'open' and wait_ms == 0 and 'half_open' or breaker.state,
  wait_ms = wait_ms,
  streak = breaker.streak,
  calls = calls,
  failures = failures,
  openings = breaker.openings,
})
