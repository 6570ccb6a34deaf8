-- ABANDONED: an admitted call was not made, or its end says nothing about the deployment. A probe's place is free at
-- once; of another call nothing is kept.
--   KEYS[1]   {penstock:breaker:DEPLOYMENT}
--   ARGV[1]   {"ticket", "epoch": as admitted,
--              "now_ms": instead of Redis's clock, optional}
--   returns   {}
-- A report of another epoch changes nothing.
-- include breaker_state

if is_news() and breaker.state == 'half_open' then
  keep({epoch = breaker.epoch + 1, prober = '', until_ms = now_ms})
end
return '{}'
