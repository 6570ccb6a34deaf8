-- One breaker, as each of its scripts sees it: `given` is ARGV[1], `now_ms` the time, `breaker` the hash at KEYS[1]:
--   state      closed, open or half_open
--   epoch      grows with every change of state, every probe and every probe given back; it begins as the time (ms), so
--              that no ticket from before a loss of the key fits
--   until_ms   when open, the end of the cool-down; when half_open, the end of the probe's lease
--   openings   how often it opened since it was last closed
--   streak     failures in a row
--   prober     the ticket of the probe that is out
--   changer    the ticket whose report opened or closed it last
--   recent     the tickets that were reported last, newest first: a report that a connection repeats counts once
--   slice:N    what breaker_window.lua counts
local KEEP_MS = 3600000
local REMEMBERED = 32

local given = cjson.decode(ARGV[1])

local function redis_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local now_ms = given.now_ms or redis_ms()

local breaker = {
  state = 'closed', epoch = 0, until_ms = 0, openings = 0, streak = 0, prober = '', changer = '', recent = '',
}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local name, value = stored[i], stored[i + 1]
  breaker[name] = type(breaker[name]) == 'number' and tonumber(value) or value
end

local function keep(changes)
  local flat = {}
  for name, value in pairs(changes) do
    breaker[name] = value
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', KEYS[1], unpack(flat))
  redis.call('PEXPIRE', KEYS[1], KEEP_MS + math.max(0, breaker.until_ms - now_ms))
end

local function is_news()
  return breaker.epoch == given.epoch and not string.find(breaker.recent, given.ticket, 1, true)
end

local function recent()
  return string.sub(given.ticket .. ' ' .. breaker.recent, 1, REMEMBERED * (#given.ticket + 1))
end
